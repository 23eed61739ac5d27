//! The rank that a launcher gives a process, in environment variables.
//!
//! Variables are inherited: all workers that a loop in a shell starts find the variables of the
//! task that the shell is, such as `SLURM_PROCID=0` of a batch script. So a launcher's rank counts
//! only where it started several tasks, each with a rank of its own.

use crate::session::{RankSource, RequestedId};

/// The environment variables of a launcher.
struct Launcher {
    rank: &'static str,
    /// The variable that says how many tasks it started; absent: each has a rank of its own.
    tasks: Option<&'static str>,
}

/// Known launchers. Of several, the innermost is heard: torchrun and mpirun may run under Slurm or
/// Kubernetes.
const LAUNCHERS: [Launcher; 5] = [
    // torchrun
    Launcher { rank: "RANK", tasks: Some("WORLD_SIZE") },
    // mpirun of Open MPI, and those of MPICH and Intel MPI
    Launcher { rank: "OMPI_COMM_WORLD_RANK", tasks: Some("OMPI_COMM_WORLD_SIZE") },
    Launcher { rank: "PMI_RANK", tasks: Some("PMI_SIZE") },
    // srun: SLURM_NTASKS is the job's, which batch scripts have as well; this is the step's.
    Launcher { rank: "SLURM_PROCID", tasks: Some("SLURM_STEP_NUM_TASKS") },
    // Kubernetes, indexed Jobs: one task a pod
    Launcher { rank: "JOB_COMPLETION_INDEX", tasks: None },
];

/// The rank that the innermost launcher of several tasks gives this process, if there is one.
///
/// # Errors
/// A variable of it is no rank.
pub fn rank(variable: impl Fn(&str) -> Option<String>) -> Result<Option<RequestedId>, String> {
    let value = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    for Launcher { rank: name, tasks } in LAUNCHERS {
        let Some(rank) = value(name) else { continue };
        let started = tasks.map(|tasks| (tasks, value(tasks).and_then(|count| count.parse::<u32>().ok())));
        if let Some((tasks, count)) = started
            && count.is_none_or(|count| count <= 1)
        {
            let count = count.map_or_else(|| "not set".to_owned(), |count| count.to_string());
            tracing::info!("{name}={rank} is not used as rank: no launcher of several tasks set it ({tasks}: {count})");
            continue;
        }
        let parsed =
            rank.parse().ok().filter(|rank| started.and_then(|(_, count)| count).is_none_or(|count| *rank < count));
        let Some(rank) = parsed else {
            let below = started.and_then(|(tasks, count)| Some(format!(" below {tasks}={}", count?)));
            let below = below.unwrap_or_default();
            return Err(format!(
                "environment variable {name} is {rank:?}, not a rank{below}: unset it, or pass --rank"
            ));
        };
        return Ok(Some(RequestedId { rank, source: RankSource::Variable(name) }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rank in an environment, and the variable that it came from.
    fn found(environment: &[(&str, &str)]) -> Result<Option<(u32, String)>, String> {
        let variable =
            |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Ok(rank(variable)?.map(|wanted| (wanted.rank, wanted.source.to_string())))
    }

    #[test]
    fn a_launcher_counts_where_it_started_several_tasks() {
        let torchrun = |rank, size| [("RANK", rank), ("WORLD_SIZE", size)];
        let srun = |rank, tasks| [("SLURM_PROCID", rank), ("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", tasks)];
        let with = |one: &[(&'static str, &'static str)], other: &[(&'static str, &'static str)]| [one, other].concat();
        let index = [("JOB_COMPLETION_INDEX", "9")];
        let mpirun = [("OMPI_COMM_WORLD_RANK", "5"), ("OMPI_COMM_WORLD_SIZE", "6")];
        let mpich = [("PMI_RANK", "1"), ("PMI_SIZE", "2")];
        for (environment, expected) in [
            (vec![], None),
            (torchrun("3", "4").to_vec(), Some((3, "RANK"))),
            (srun("3", "4").to_vec(), Some((3, "SLURM_PROCID"))),
            (mpirun.to_vec(), Some((5, "OMPI_COMM_WORLD_RANK"))),
            (mpich.to_vec(), Some((1, "PMI_RANK"))),
            (index.to_vec(), Some((9, "JOB_COMPLETION_INDEX"))),
            // One task, and whatever it starts.
            (torchrun("0", "1").to_vec(), None),
            (srun("0", "1").to_vec(), None),
            // The shell of a batch script: of the job's tasks, none is started yet.
            (vec![("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_TASKS_PER_NODE", "8")], None),
            // Left over, or set to nothing.
            (vec![("RANK", "2")], None),
            (torchrun("2", "").to_vec(), None),
            (torchrun("2", "many").to_vec(), None),
            (torchrun("", "4").to_vec(), None),
            (vec![("JOB_COMPLETION_INDEX", "")], None),
            // The innermost of several, of those that count.
            (with(&torchrun("3", "4"), &srun("0", "2")), Some((3, "RANK"))),
            (with(&torchrun("0", "1"), &srun("1", "2")), Some((1, "SLURM_PROCID"))),
            (with(&mpirun, &srun("0", "2")), Some((5, "OMPI_COMM_WORLD_RANK"))),
            (with(&torchrun("0", "1"), &index), Some((9, "JOB_COMPLETION_INDEX"))),
        ] {
            let expected = expected.map(|(rank, name)| (rank, name.to_owned()));
            assert_eq!(found(&environment), Ok(expected), "{environment:?}");
        }
    }

    #[test]
    fn a_variable_that_is_no_rank_is_named() {
        for (rank, problem) in [
            ("one", "environment variable RANK is \"one\", not a rank below WORLD_SIZE=4"),
            ("-1", "environment variable RANK is \"-1\", not a rank below WORLD_SIZE=4"),
            ("4", "environment variable RANK is \"4\", not a rank below WORLD_SIZE=4"),
            ("1.0", "environment variable RANK is \"1.0\", not a rank below WORLD_SIZE=4"),
        ] {
            let error = found(&[("RANK", rank), ("WORLD_SIZE", "4")]).unwrap_err();
            assert_eq!(error, format!("{problem}: unset it, or pass --rank"));
        }
        let error = found(&[("JOB_COMPLETION_INDEX", "first")]).unwrap_err();
        assert!(error.starts_with("environment variable JOB_COMPLETION_INDEX is \"first\", not a rank:"), "{error}");
    }
}

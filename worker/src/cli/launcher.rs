//! The worker id from the environment variables of a launcher.
//!
//! Processes inherit variables: all workers that a shell script starts in a loop have the variables
//! of the script's task, such as `SLURM_PROCID=0` in a batch script. A launcher's rank is therefore
//! used only if the launcher started several tasks, each with its own rank.

use anyhow::{Result, bail};

use crate::coordinator_session::{RequestedWorkerId, WorkerIdSource};

/// The environment variables of a launcher.
struct Launcher {
    /// The variable with the rank of a task.
    rank_variable: &'static str,
    /// The variable with the number of tasks; none if the launcher sets `rank_variable` only for
    /// tasks of its own.
    task_count_variable: Option<&'static str>,
}

/// Known launchers, the innermost first: torchrun and mpirun may run under Slurm or Kubernetes.
const LAUNCHERS: [Launcher; 5] = [
    // torchrun
    Launcher { rank_variable: "RANK", task_count_variable: Some("WORLD_SIZE") },
    // mpirun of Open MPI; mpirun of MPICH and of Intel MPI
    Launcher { rank_variable: "OMPI_COMM_WORLD_RANK", task_count_variable: Some("OMPI_COMM_WORLD_SIZE") },
    Launcher { rank_variable: "PMI_RANK", task_count_variable: Some("PMI_SIZE") },
    // srun. SLURM_NTASKS is not used: it is the task count of the job, which batch scripts have,
    // too. SLURM_STEP_NUM_TASKS is the task count of the job step that srun started.
    Launcher { rank_variable: "SLURM_PROCID", task_count_variable: Some("SLURM_STEP_NUM_TASKS") },
    // Kubernetes, indexed Jobs: one task per pod
    Launcher { rank_variable: "JOB_COMPLETION_INDEX", task_count_variable: None },
];

/// The rank that the innermost launcher of several tasks gives this process, as the worker id; none
/// if no launcher started several tasks. `variable` looks up an environment variable.
///
/// # Errors
/// The launcher's variable is not a rank.
pub fn requested_id(variable: impl Fn(&str) -> Option<String>) -> Result<Option<RequestedWorkerId>> {
    let value = |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    for Launcher { rank_variable: name, task_count_variable: tasks } in LAUNCHERS {
        let Some(rank) = value(name) else { continue };
        let task_count = tasks.map(|tasks| (tasks, value(tasks).and_then(|count| count.parse::<u32>().ok())));
        if let Some((tasks, count)) = task_count
            && count.is_none_or(|count| count <= 1)
        {
            let count = count.map_or_else(|| "not set".to_owned(), |count| count.to_string());
            tracing::info!(
                "{name}={rank} is not used as worker id: no launcher of several tasks set it ({tasks}: {count})"
            );
            continue;
        }
        let is_below_count = |rank: &u32| task_count.and_then(|(_, count)| count).is_none_or(|count| *rank < count);
        let Some(worker_id) = rank.parse().ok().filter(is_below_count) else {
            let limit = task_count.and_then(|(tasks, count)| Some(format!(" below {tasks}={}", count?)));
            let limit = limit.unwrap_or_default();
            bail!("environment variable {name} is {rank:?}, not a rank{limit}: unset it, or pass --rank");
        };
        return Ok(Some(RequestedWorkerId { worker_id, source: WorkerIdSource::Variable(name) }));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worker id in an environment, and the variable that it is from.
    fn id_and_variable(environment: &[(&str, &str)]) -> Result<Option<(u32, String)>> {
        let variable =
            |name: &str| environment.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Ok(requested_id(variable)?.map(|requested| (requested.worker_id, requested.source.to_string())))
    }

    #[test]
    fn the_rank_is_used_if_a_launcher_started_several_tasks() {
        let torchrun = |rank, size| [("RANK", rank), ("WORLD_SIZE", size)];
        let srun = |rank, tasks| [("SLURM_PROCID", rank), ("SLURM_NTASKS", "8"), ("SLURM_STEP_NUM_TASKS", tasks)];
        let both = |one: &[(&'static str, &'static str)], other: &[(&'static str, &'static str)]| [one, other].concat();
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
            // One task.
            (torchrun("0", "1").to_vec(), None),
            (srun("0", "1").to_vec(), None),
            // A batch script, which srun did not start.
            (vec![("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_TASKS_PER_NODE", "8")], None),
            // Incomplete, empty or invalid variables.
            (vec![("RANK", "2")], None),
            (torchrun("2", "").to_vec(), None),
            (torchrun("2", "many").to_vec(), None),
            (torchrun("", "4").to_vec(), None),
            (vec![("JOB_COMPLETION_INDEX", "")], None),
            // Several launchers: the innermost that started several tasks.
            (both(&torchrun("3", "4"), &srun("0", "2")), Some((3, "RANK"))),
            (both(&torchrun("0", "1"), &srun("1", "2")), Some((1, "SLURM_PROCID"))),
            (both(&mpirun, &srun("0", "2")), Some((5, "OMPI_COMM_WORLD_RANK"))),
            (both(&torchrun("0", "1"), &index), Some((9, "JOB_COMPLETION_INDEX"))),
        ] {
            let expected = expected.map(|(rank, name)| (rank, name.to_owned()));
            assert_eq!(id_and_variable(&environment).unwrap(), expected, "{environment:?}");
        }
    }

    #[test]
    fn the_error_names_a_variable_that_is_not_a_rank() {
        for (rank, problem) in [
            ("one", "environment variable RANK is \"one\", not a rank below WORLD_SIZE=4"),
            ("-1", "environment variable RANK is \"-1\", not a rank below WORLD_SIZE=4"),
            ("4", "environment variable RANK is \"4\", not a rank below WORLD_SIZE=4"),
            ("1.0", "environment variable RANK is \"1.0\", not a rank below WORLD_SIZE=4"),
        ] {
            let error = id_and_variable(&[("RANK", rank), ("WORLD_SIZE", "4")]).unwrap_err().to_string();
            assert_eq!(error, format!("{problem}: unset it, or pass --rank"));
        }
        let error = id_and_variable(&[("JOB_COMPLETION_INDEX", "first")]).unwrap_err().to_string();
        assert!(error.starts_with("environment variable JOB_COMPLETION_INDEX is \"first\", not a rank:"), "{error}");
    }
}

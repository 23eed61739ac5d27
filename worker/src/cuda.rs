//! Loading of libtorch's CUDA part. The program is linked against libtorch's CPU part only; the
//! CUDA part is opened when a GPU is requested, from the PyTorch on the machine, and finds NVIDIA's
//! libraries by itself.
//!
//! Both parts have to be of the same build. If the CPU part that the process started with is in
//! another folder than the CUDA part, the process re-executes itself, before doing anything else,
//! with the latter's folder in front of `LD_LIBRARY_PATH`.

use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

/// The version of libtorch that this program is compiled for.
const VERSION: &str = "2.11.0";
const CPU_PART: &str = "libtorch_cpu.so";
const CUDA_PART: &str = "libtorch_cuda.so";
/// Set in a re-executed process, to the folder from which it was to load libtorch.
const STARTED_ANEW: &str = "DICO_LIBTORCH_CUDA";
/// Prints the folder of PyTorch without importing it, which takes seconds.
const ASK_PYTHON: &str = "import importlib.util as u; print(*u.find_spec('torch').submodule_search_locations)";

// SAFETY: a declaration of the function in cuda/settings.cpp.
unsafe extern "C" {
    fn dico_compute_reproducibly();
}

/// Loads libtorch's CUDA part. Must be called before the first tensor is created, while there is
/// one thread.
///
/// # Errors
/// It cannot be found or used; the message lists the folders that were searched.
pub fn load() -> Result<(), String> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|error| format!("/proc/self/maps: {error}"))?;
    if mapped(&maps, CUDA_PART).is_none() {
        let own = mapped(&maps, CPU_PART);
        let beside = own.as_deref().and_then(Path::parent).map(Path::to_owned);
        let folder = find(&places(|name| env::var_os(name), beside, ask_python()))?;
        // With links resolved: the memory map names files.
        if own != folder.join(CPU_PART).canonicalize().ok() {
            return Err(start_anew(&folder));
        }
        open(&folder.join(CUDA_PART))?;
    }
    // SAFETY: by this function's contract no other thread uses libtorch yet.
    unsafe { dico_compute_reproducibly() };
    Ok(())
}

/// Opens a library until the process ends, with its symbols visible to all.
fn open(path: &Path) -> Result<(), String> {
    // SAFETY: libtorch's initialisers are made to be run so: Python opens the library in the same way.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    std::mem::forget(library.map_err(|error| format!("cannot open {}: {error}", path.display()))?);
    Ok(())
}

/// A possible location of libtorch.
struct LibtorchLocation {
    /// The source of this location, for messages.
    source: &'static str,
    /// The folder of its libraries, or the reason why there is none.
    folder: Result<PathBuf, String>,
}

/// The locations in the order of the search.
fn places(
    variable: impl Fn(&str) -> Option<OsString>,
    own: Option<PathBuf>,
    python: Result<PathBuf, String>,
) -> Vec<LibtorchLocation> {
    let place = |source, folder| LibtorchLocation { source, folder };
    let mut places = vec![place(
        "LIBTORCH",
        variable("LIBTORCH").map(|root| Path::new(&root).join("lib")).ok_or_else(|| "not set".to_owned()),
    )];
    match variable("LD_LIBRARY_PATH").filter(|folders| !folders.is_empty()) {
        None => places.push(place("LD_LIBRARY_PATH", Err("not set".to_owned()))),
        Some(folders) => places.extend(
            env::split_paths(&folders)
                .filter(|folder| !folder.as_os_str().is_empty())
                .map(|folder| place("LD_LIBRARY_PATH", Ok(folder))),
        ),
    }
    places.extend(own.map(|folder| place("this program's libtorch", Ok(folder))));
    places.push(place("PyTorch of python3", python.map(|package| package.join("lib"))));
    places
}

/// The first location that has the CUDA part in the right version.
fn find(places: &[LibtorchLocation]) -> Result<PathBuf, String> {
    let mut looked = String::new();
    for LibtorchLocation { source, folder } in places {
        let problem = match folder {
            Err(problem) => problem.clone(),
            Ok(folder) => match look(folder) {
                Ok(()) => return Ok(folder.clone()),
                Err(problem) => format!("{}: {problem}", folder.display()),
            },
        };
        write!(looked, "\n  {source}: {problem}").expect("a string takes all that is written to it");
    }
    Err(format!(
        "computing on GPUs needs {CUDA_PART} of PyTorch {VERSION}, which was looked for in{looked}\n\
         install it (pip install torch=={VERSION}), or set LIBTORCH to the folder of a CUDA build of libtorch {VERSION}"
    ))
}

fn look(folder: &Path) -> Result<(), String> {
    if let Some(missing) = [CUDA_PART, CPU_PART].into_iter().find(|part| !folder.join(part).is_file()) {
        return Err(format!("no {missing}"));
    }
    let found = version(folder).ok_or("its version cannot be read")?;
    if found.split('+').next() == Some(VERSION) { Ok(()) } else { Err(format!("version {found}")) }
}

/// The version of libtorch in `folder`, from a file in libtorch's archives or a module of PyTorch.
fn version(folder: &Path) -> Option<String> {
    let root = folder.parent()?;
    if let Ok(version) = std::fs::read_to_string(root.join("build-version")) {
        return Some(version.trim().to_owned());
    }
    let module = std::fs::read_to_string(root.join("version.py")).ok()?;
    let value = module.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(value.trim_matches(['\'', '"']).to_owned())
}

/// The folder of PyTorch, as python3 reports it.
fn ask_python() -> Result<PathBuf, String> {
    let output =
        Command::new("python3").args(["-c", ASK_PYTHON]).output().map_err(|error| format!("python3: {error}"))?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if output.status.success() && !folder.is_empty() { Ok(folder.into()) } else { Err("there is none".to_owned()) }
}

/// The file that a library of this process was loaded from; `maps` is the process's memory map.
fn mapped(maps: &str, library: &str) -> Option<PathBuf> {
    let path = |line: &str| Some(PathBuf::from(&line[line.find('/')?..]));
    maps.lines().filter_map(path).find(|path| path.ends_with(library))
}

/// Re-executes this process with libtorch from `folder`. Returns only on failure, with the reason.
fn start_anew(folder: &Path) -> String {
    if env::var_os(STARTED_ANEW).is_some() {
        let folder = folder.display();
        return format!(
            "{CUDA_PART} is in {folder}, but {CPU_PART} comes from elsewhere whatever LD_LIBRARY_PATH says"
        );
    }
    let paths = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths = match env::join_paths(std::iter::once(folder.to_owned()).chain(env::split_paths(&paths))) {
        Ok(paths) => paths,
        Err(error) => return format!("{}: {error}", folder.display()),
    };
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => return format!("cannot find this program: {error}"),
    };
    let mut arguments = env::args_os();
    let mut command = Command::new(&program);
    arguments.next().inspect(|name| _ = command.arg0(name));
    let error = command.args(arguments).env("LD_LIBRARY_PATH", paths).env(STARTED_ANEW, folder).exec();
    format!("cannot start {} anew: {error}", program.display())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A PyTorch of this version, in a temporary folder.
    fn pytorch(version: &str) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("lib")).unwrap();
        for part in [CPU_PART, CUDA_PART] {
            std::fs::write(root.path().join("lib").join(part), "").unwrap();
        }
        std::fs::write(
            root.path().join("version.py"),
            format!("from typing import Optional\n__version__ = '{version}'\n"),
        )
        .unwrap();
        root
    }

    #[test]
    fn the_first_place_with_the_right_version_is_taken() {
        let [old, first, second] = ["2.10.0+cu130", "2.11.0+cu130", "2.11.0"].map(pytorch);
        let paths = env::join_paths([Path::new("/nowhere"), &first.path().join("lib")]).unwrap();
        let variable = |name: &str| match name {
            "LIBTORCH" => Some(old.path().as_os_str().to_owned()),
            "LD_LIBRARY_PATH" => Some(paths.clone()),
            _ => None,
        };
        let found = find(&places(variable, None, Ok(second.path().to_owned()))).unwrap();
        assert_eq!(found, first.path().join("lib"));
        let found = find(&places(|_| None, Some("/nowhere".into()), Ok(second.path().to_owned()))).unwrap();
        assert_eq!(found, second.path().join("lib"));
    }

    #[test]
    fn an_archive_of_libtorch_says_its_version_in_a_file() {
        let root = pytorch("1.0.0");
        std::fs::write(root.path().join("build-version"), "2.11.0+cu130\n").unwrap();
        assert_eq!(look(&root.path().join("lib")), Ok(()));
        std::fs::write(root.path().join("build-version"), "2.11.1").unwrap();
        assert_eq!(look(&root.path().join("lib")), Err("version 2.11.1".to_owned()));
    }

    #[test]
    fn what_was_looked_for_is_said_when_nothing_is_found() {
        let old = pytorch("2.9.1+cu126");
        std::fs::remove_file(old.path().join("lib").join(CUDA_PART)).unwrap();
        let other = pytorch("2.9.1+cu126");
        let variable = |name: &str| (name == "LIBTORCH").then(|| old.path().as_os_str().to_owned());
        let error =
            find(&places(variable, Some(other.path().join("lib")), Err("there is none".to_owned()))).unwrap_err();
        let [old, other] = [&old, &other].map(|root| root.path().join("lib").display().to_string());
        for line in [
            &format!("LIBTORCH: {old}: no libtorch_cuda.so"),
            "LD_LIBRARY_PATH: not set",
            &format!("this program's libtorch: {other}: version 2.9.1+cu126"),
            "PyTorch of python3: there is none",
            "pip install torch==2.11.0",
        ] {
            assert!(error.contains(line), "{line} is not in {error}");
        }
    }

    #[test]
    fn the_process_knows_where_its_libraries_are_from() {
        let maps = "7f00-7f01 r--p 00000000 fe:01 42                         /opt/my torch/lib/libtorch_cpu.so\n\
                    7f02-7f03 rw-p 00000000 00:00 0 \n";
        assert_eq!(mapped(maps, CPU_PART), Some("/opt/my torch/lib/libtorch_cpu.so".into()));
        assert_eq!(mapped(maps, CUDA_PART), None);
        let own = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(mapped(&own, CPU_PART).is_some_and(|file| file.is_file()));
    }
}

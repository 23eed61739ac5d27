//! Loading of libtorch's CUDA libraries. The program is linked only against libtorch's CPU
//! libraries. When a GPU is requested, the CUDA libraries are opened from the first of these
//! folders that has them: that of the environment variable `LIBTORCH`, those of `LD_LIBRARY_PATH`,
//! that of the CPU libraries, and that of python3's PyTorch. They find NVIDIA's libraries by
//! themselves.
//!
//! CPU and CUDA libraries have to be of the same build. If the CPU library that the process started
//! with is in another folder than the CUDA library, the process first re-executes itself, with that
//! folder in front of `LD_LIBRARY_PATH`.

use std::env;
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tch::{Cuda, Device};

/// The version of libtorch that this program is compiled for.
const LIBTORCH_VERSION: &str = "2.11.0";
const CPU_LIBRARY: &str = "libtorch_cpu.so";
const CUDA_LIBRARY: &str = "libtorch_cuda.so";
/// Set in a re-executed process, to the folder from which it should load libtorch.
const REEXECUTED_VARIABLE: &str = "DICO_LIBTORCH_CUDA";
/// Prints the folder of PyTorch without importing it, because an import takes seconds.
const FIND_PYTORCH_SCRIPT: &str = "import importlib.util as u; print(*u.find_spec('torch').submodule_search_locations)";

// SAFETY: a declaration of the function in cuda/settings.cpp.
unsafe extern "C" {
    fn dico_use_deterministic_algorithms();
}

/// Loads libtorch's CUDA libraries, and makes libtorch use only deterministic algorithms. Must be
/// called before the first tensor is created, while there is one thread. Does not return if the
/// process has to re-execute itself (see the module).
///
/// # Errors
/// The libraries cannot be found in the right version (the message lists the folders that were
/// searched) or opened, the process cannot re-execute itself or has already done so without effect,
/// or `/proc/self/maps` cannot be read.
pub fn load() -> Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|error| anyhow!("/proc/self/maps: {error}"))?;
    if mapped_file(&maps, CUDA_LIBRARY).is_none() {
        let cpu_library = mapped_file(&maps, CPU_LIBRARY);
        let own_folder = cpu_library.as_deref().and_then(Path::parent).map(Path::to_owned);
        let folder = find_libtorch(&libtorch_locations(|name| env::var_os(name), own_folder, pytorch_folder()))?;
        // The memory map has paths without symbolic links.
        if cpu_library != folder.join(CPU_LIBRARY).canonicalize().ok() {
            return Err(reexecute(&folder));
        }
        open_library(&folder.join(CUDA_LIBRARY))?;
    }
    // SAFETY: by this function's contract no other thread uses libtorch yet.
    unsafe { dico_use_deterministic_algorithms() };
    Ok(())
}

/// Waits until a GPU has completed all queued work. Other devices have no such work.
pub fn synchronize(device: Device) {
    if let Device::Cuda(number) = device {
        Cuda::synchronize(number as i64);
    }
}

/// Opens a library, with its symbols visible to other libraries. It stays open until the process
/// ends.
fn open_library(path: &Path) -> Result<()> {
    // SAFETY: opening a library runs its initializers. Those of libtorch may run while the program
    // runs: Python opens it in the same way.
    let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    std::mem::forget(library.map_err(|error| anyhow!("cannot open {}: {error}", path.display()))?);
    Ok(())
}

/// A possible location of libtorch.
struct LibtorchLocation {
    /// The origin of this location, for messages.
    source: &'static str,
    /// The folder of its libraries, or the reason why there is none.
    folder: Result<PathBuf>,
}

/// The locations of libtorch, in the order of the search. `variable` reads an environment variable,
/// `own_folder` is the folder of the CPU library that the process has loaded, and `pytorch` is the
/// folder of python3's PyTorch.
fn libtorch_locations(
    variable: impl Fn(&str) -> Option<OsString>,
    own_folder: Option<PathBuf>,
    pytorch: Result<PathBuf>,
) -> Vec<LibtorchLocation> {
    let location = |source, folder| LibtorchLocation { source, folder };
    let mut locations =
        vec![location("LIBTORCH", variable("LIBTORCH").map(|root| Path::new(&root).join("lib")).context("not set"))];
    match variable("LD_LIBRARY_PATH").filter(|folders| !folders.is_empty()) {
        None => locations.push(location("LD_LIBRARY_PATH", Err(anyhow!("not set")))),
        Some(folders) => locations.extend(
            env::split_paths(&folders)
                .filter(|folder| !folder.as_os_str().is_empty())
                .map(|folder| location("LD_LIBRARY_PATH", Ok(folder))),
        ),
    }
    locations.extend(own_folder.map(|folder| location("this program's libtorch", Ok(folder))));
    locations.push(location("PyTorch of python3", pytorch.map(|package| package.join("lib"))));
    locations
}

/// The folder of the first location that has the CUDA libraries in the right version.
///
/// # Errors
/// There is none. The message lists all locations, each with the reason.
fn find_libtorch(locations: &[LibtorchLocation]) -> Result<PathBuf> {
    let mut searched = String::new();
    for LibtorchLocation { source, folder } in locations {
        let problem = match folder {
            Err(problem) => problem.to_string(),
            Ok(folder) => match check_folder(folder) {
                Ok(()) => return Ok(folder.clone()),
                Err(problem) => format!("{}: {problem}", folder.display()),
            },
        };
        write!(searched, "\n  {source}: {problem}").expect("writing to a string does not fail");
    }
    bail!(
        "computing on GPUs needs {CUDA_LIBRARY} of PyTorch {LIBTORCH_VERSION}, which was not found in{searched}\n\
         install it (pip install torch=={LIBTORCH_VERSION}), or set LIBTORCH to the folder of a CUDA build of libtorch {LIBTORCH_VERSION}"
    )
}

/// Checks that a folder has libtorch's CPU and CUDA libraries in the right version.
///
/// # Errors
/// A library is missing, or the version is another one or cannot be read.
fn check_folder(folder: &Path) -> Result<()> {
    if let Some(missing) = [CUDA_LIBRARY, CPU_LIBRARY].into_iter().find(|library| !folder.join(library).is_file()) {
        bail!("no {missing}");
    }
    let version = libtorch_version(folder).context("its version cannot be read")?;
    ensure!(version.split('+').next() == Some(LIBTORCH_VERSION), "version {version}");
    Ok(())
}

/// The version of libtorch in `folder`: from `build-version`, which libtorch's archives contain, or
/// from `version.py` of the Python package.
fn libtorch_version(folder: &Path) -> Option<String> {
    let root = folder.parent()?;
    if let Ok(version) = std::fs::read_to_string(root.join("build-version")) {
        return Some(version.trim().to_owned());
    }
    let module = std::fs::read_to_string(root.join("version.py")).ok()?;
    let value = module.lines().find_map(|line| line.strip_prefix("__version__ = "))?;
    Some(value.trim_matches(['\'', '"']).to_owned())
}

/// The folder of python3's PyTorch package.
///
/// # Errors
/// There is no python3, or it has no PyTorch.
fn pytorch_folder() -> Result<PathBuf> {
    let output = Command::new("python3")
        .args(["-c", FIND_PYTORCH_SCRIPT])
        .output()
        .map_err(|error| anyhow!("python3: {error}"))?;
    let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success() && !folder.is_empty(), "there is none");
    Ok(folder.into())
}

/// The file from which this process has loaded a library; `maps` is the process's memory map.
fn mapped_file(maps: &str, library: &str) -> Option<PathBuf> {
    let path = |line: &str| Some(PathBuf::from(&line[line.find('/')?..]));
    maps.lines().filter_map(path).find(|path| path.ends_with(library))
}

/// Re-executes this process with libtorch from `folder`. Returns only if that fails, with the
/// reason.
fn reexecute(folder: &Path) -> anyhow::Error {
    if env::var_os(REEXECUTED_VARIABLE).is_some() {
        let folder = folder.display();
        return anyhow!(
            "{CUDA_LIBRARY} is in {folder}, but {CPU_LIBRARY} is loaded from another folder, although LD_LIBRARY_PATH \
             begins with {folder}"
        );
    }
    let paths = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths = match env::join_paths(std::iter::once(folder.to_owned()).chain(env::split_paths(&paths))) {
        Ok(paths) => paths,
        Err(error) => return anyhow!("{}: {error}", folder.display()),
    };
    let program = match env::current_exe() {
        Ok(program) => program,
        Err(error) => return anyhow!("cannot find this program: {error}"),
    };
    let mut arguments = env::args_os();
    let mut command = Command::new(&program);
    arguments.next().inspect(|name| _ = command.arg0(name));
    let error = command.args(arguments).env("LD_LIBRARY_PATH", paths).env(REEXECUTED_VARIABLE, folder).exec();
    anyhow!("cannot restart {}: {error}", program.display())
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A PyTorch of this version, in a temporary folder.
    fn pytorch(version: &str) -> TempDir {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("lib")).unwrap();
        for library in [CPU_LIBRARY, CUDA_LIBRARY] {
            std::fs::write(root.path().join("lib").join(library), "").unwrap();
        }
        std::fs::write(
            root.path().join("version.py"),
            format!("from typing import Optional\n__version__ = '{version}'\n"),
        )
        .unwrap();
        root
    }

    #[test]
    fn the_first_location_with_the_right_version_is_used() {
        let [old, first, second] = ["2.10.0+cu130", "2.11.0+cu130", "2.11.0"].map(pytorch);
        let paths = env::join_paths([Path::new("/nowhere"), &first.path().join("lib")]).unwrap();
        let variable = |name: &str| match name {
            "LIBTORCH" => Some(old.path().as_os_str().to_owned()),
            "LD_LIBRARY_PATH" => Some(paths.clone()),
            _ => None,
        };
        let actual = find_libtorch(&libtorch_locations(variable, None, Ok(second.path().to_owned()))).unwrap();
        assert_eq!(actual, first.path().join("lib"));
        let locations = libtorch_locations(|_| None, Some("/nowhere".into()), Ok(second.path().to_owned()));
        let actual = find_libtorch(&locations).unwrap();
        assert_eq!(actual, second.path().join("lib"));
    }

    #[test]
    fn the_version_of_a_libtorch_archive_is_read_from_its_file() {
        let root = pytorch("1.0.0");
        std::fs::write(root.path().join("build-version"), "2.11.0+cu130\n").unwrap();
        check_folder(&root.path().join("lib")).unwrap();
        std::fs::write(root.path().join("build-version"), "2.11.1").unwrap();
        assert_eq!(check_folder(&root.path().join("lib")).unwrap_err().to_string(), "version 2.11.1");
    }

    #[test]
    fn the_error_lists_all_searched_locations() {
        let old = pytorch("2.9.1+cu126");
        std::fs::remove_file(old.path().join("lib").join(CUDA_LIBRARY)).unwrap();
        let other = pytorch("2.9.1+cu126");
        let variable = |name: &str| (name == "LIBTORCH").then(|| old.path().as_os_str().to_owned());
        let locations = libtorch_locations(variable, Some(other.path().join("lib")), Err(anyhow!("there is none")));
        let error = find_libtorch(&locations).unwrap_err().to_string();
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
    fn the_file_of_a_loaded_library_is_read_from_the_memory_map() {
        let maps = "7f00-7f01 r--p 00000000 fe:01 42                         /opt/my torch/lib/libtorch_cpu.so\n\
                    7f02-7f03 rw-p 00000000 00:00 0 \n";
        assert_eq!(mapped_file(maps, CPU_LIBRARY), Some("/opt/my torch/lib/libtorch_cpu.so".into()));
        assert_eq!(mapped_file(maps, CUDA_LIBRARY), None);
        let own = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(mapped_file(&own, CPU_LIBRARY).is_some_and(|file| file.is_file()));
    }
}

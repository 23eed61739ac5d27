//! The `coordinator` program. The library has the code.

use std::process::ExitCode;

fn main() -> ExitCode {
    dico_coordinator::cli::main()
}

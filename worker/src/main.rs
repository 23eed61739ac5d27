//! `worker`: see `worker --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dico_worker::cli::main()
}

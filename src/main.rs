//! The command `pgkeep`.

use std::process::ExitCode;

fn main() -> ExitCode {
    pgkeep::cli::main()
}

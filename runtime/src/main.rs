//! The `lazaret` binary: hands the arguments to the library and exits with its code.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    lazaret::main(std::env::args_os())
}

//! `realtime-load`: run one workload against one server; JSON on stdout, lines for people on stderr.
//!
//! Exit codes are in [`options::USAGE`]. The program never judges a time; `benches/run.py` puts two servers' figures side by side.

use realtime_load::options;
use realtime_load::run::run;
use realtime_load::watch::Watch;
use std::io::{Write, stderr, stdout};
use std::process::ExitCode;

fn main() -> ExitCode {
    let options = match options::parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => return say(&format!("{error}\n{}", options::USAGE), 2),
    };
    match run(&options, Watch::default()) {
        Ok(outcome) => {
            // A reader that went away is no reason for another exit code than the run's.
            let _ = writeln!(stdout(), "{}", outcome.report.json());
            say(&(outcome.report.lines().join("\n") + "\n"), outcome.code())
        }
        Err(failure) => say(&format!("{failure}\n"), 2),
    }
}

fn say(text: &str, code: u8) -> ExitCode {
    let _ = stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

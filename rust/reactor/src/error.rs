//! Why an engine could not start, as one line for whoever runs the server.
//!
//! The code is for programs (Python turns each into an exit), the message for people: what was asked, what the
//! system said, what to do.

use std::fmt;

/// Why an engine could not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartError {
    /// Which kind.
    pub code: StartCode,
    /// One line that says what to do.
    pub message: String,
}

/// The kinds of [`StartError`], by the names that Python sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartCode {
    /// Somebody listens on the port already.
    PortInUse,
    /// The address cannot be listened on.
    Address,
    /// Another process uses the data directory.
    DataDirLocked,
    /// The data directory cannot be made or written.
    DataDirUnwritable,
    /// The log's file is damaged or no log.
    LogCorrupt,
    /// The log was written by a newer version.
    LogNewer,
    /// The options contradict themselves or name what does not exist.
    Options,
    /// Anything else of the system's.
    Io,
}

impl StartCode {
    /// The name that Python sees as `EngineError.code`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PortInUse => "port_in_use",
            Self::Address => "address",
            Self::DataDirLocked => "data_dir_locked",
            Self::DataDirUnwritable => "data_dir_unwritable",
            Self::LogCorrupt => "log_corrupt",
            Self::LogNewer => "log_newer",
            Self::Options => "options",
            Self::Io => "io",
        }
    }
}

impl StartError {
    pub(crate) fn new(code: StartCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// What is wrong in the options, or that they came too late.
    pub(crate) fn options(message: impl Into<String>) -> Self {
        Self::new(StartCode::Options, message)
    }

    /// A thread, a descriptor or random bytes that the system would not give.
    pub(crate) fn io(what: &str, source: &std::io::Error) -> Self {
        Self::new(StartCode::Io, format!("{what}: {source}; check the limits of this process and machine"))
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StartError {}

impl From<realtime_log::Error> for StartError {
    fn from(error: realtime_log::Error) -> Self {
        use realtime_log::Error;
        let code = match error {
            Error::Locked { .. } => StartCode::DataDirLocked,
            // At start these mean that the directory cannot be written now.
            Error::Unwritable { .. } | Error::Full { .. } | Error::Gone { .. } => StartCode::DataDirUnwritable,
            Error::Busy { .. } => StartCode::DataDirLocked,
            Error::Corrupt { .. } => StartCode::LogCorrupt,
            Error::Newer { .. } => StartCode::LogNewer,
            Error::NoLog { .. } | Error::Exists { .. } | Error::NotABackup { .. } => StartCode::Options,
            Error::NoRoom { .. } | Error::CannotWrite { .. } | Error::LowDisk { .. } | Error::Sqlite(_) => {
                StartCode::Io
            }
        };
        let message = match &error {
            // Nothing goes on by itself here.
            Error::Full { path } => {
                format!("no room on the disk for log file {}; free space there and start again", path.display())
            }
            _ => error.to_string(),
        };
        Self::new(code, message)
    }
}

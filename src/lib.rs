//! devenv (map of the code to be written here)
pub mod error;
pub mod event;
pub mod exec;
pub mod lock;
pub mod paths;
pub mod report;
pub mod stop;

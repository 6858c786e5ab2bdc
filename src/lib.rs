//! devenv (map of the code to be written here)
pub mod error;
pub mod event;

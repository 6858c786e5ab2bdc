//! devenv (map of the code to be written here)
pub mod docker;
pub mod error;
pub mod event;
pub mod store;

//! devenv (map of the code to be written here)
pub mod docker;
pub mod error;
pub mod event;
pub mod exec;
pub mod lock;
pub mod paths;
pub mod stop;
pub mod store;

//! devenv (map of the code to be written here)
pub mod bundle;
pub mod cluster;
pub mod docker;
pub mod environment;
pub mod error;
pub mod event;
pub mod exec;
pub mod inputs;
pub mod lock;
pub mod paths;
pub mod report;
pub mod stop;
pub mod store;
pub mod suggest;
pub mod yaml;

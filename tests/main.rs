//! All tests that run devenv, or parts of it, as a process: one binary, so that the big libraries are linked once.
#![expect(
    clippy::unwrap_used,
    reason = "what a test can't do it needn't explain"
)]

mod bad_days;
mod broken;
mod browser;
mod ci;
mod commands;
mod daemon_faults;
#[cfg(target_os = "linux")]
mod doctor;
mod e2e;
mod engine;
mod existing;
mod existing_cluster;
#[cfg(target_os = "linux")]
mod faults;
mod harness;
#[cfg(target_os = "linux")]
mod histories;
mod hosts;
mod k3d;
mod kills;
mod list;
mod platform_faults;
#[cfg(target_os = "linux")]
mod played;
mod processes;
mod real_faults;
mod report;
mod run;
mod second_docker;
mod trial;
#[cfg(target_os = "linux")]
mod trust;
#[cfg(target_os = "linux")]
mod workflow;

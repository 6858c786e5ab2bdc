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
#[cfg(target_os = "linux")]
mod doctor;
mod e2e;
mod engine;
mod harness;
mod hosts;
mod k3d;
mod list;
mod processes;
mod report;
mod run;
mod trial;
#[cfg(target_os = "linux")]
mod trust;

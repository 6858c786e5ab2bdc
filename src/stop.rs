//! The one way in which work is asked to end early: a signal from the user or from CI.
//!
//! Stopping is cooperative. Only the leaves that can take long listen ([`crate::exec`], waits for the cluster,
//! [`crate::lock`]); nobody wraps whole steps in a `select!`, because dropping a step in the middle is what leaves half-made
//! things behind.

use std::io;
use std::sync::{Arc, OnceLock};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::error::{Failure, Signal};

/// Whether somebody asked us to stop, and by which signal. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Stop {
    token: CancellationToken,
    signal: Arc<OnceLock<Signal>>,
}

impl Stop {
    /// One that nobody has asked for yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// One that SIGINT and SIGTERM ask for, and a task that ends with the second signal: then `main` leaves at once. Needs the
    /// tokio runtime.
    pub fn on_signals() -> io::Result<(Self, tokio::task::JoinHandle<Signal>)> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let stop = Self::new();
        let asked = stop.clone();
        let second = tokio::spawn(async move {
            loop {
                let signal = tokio::select! {
                    _ = interrupt.recv() => Signal::Interrupt,
                    _ = terminate.recv() => Signal::Terminate,
                };
                if asked.is_requested() {
                    return signal;
                }
                asked.request(signal);
            }
        });
        Ok((stop, second))
    }

    /// Asks everybody to stop; the first signal is the one that is reported.
    pub fn request(&self, signal: Signal) {
        self.signal.get_or_init(|| signal);
        self.token.cancel();
    }

    /// Whether somebody asked.
    pub fn is_requested(&self) -> bool {
        self.token.is_cancelled()
    }

    /// Ends when somebody asks.
    pub async fn requested(&self) {
        self.token.cancelled().await;
    }

    /// What a step returns when it gave up because of this.
    pub fn error(&self) -> anyhow::Error {
        let signal = self.signal.get().copied().unwrap_or(Signal::Interrupt);
        Failure::Stopped(signal).into()
    }

    /// Fails if somebody asked; to be put between two parts of long work.
    pub fn check(&self) -> anyhow::Result<()> {
        if self.is_requested() {
            return Err(self.error());
        }
        Ok(())
    }

    /// What comes of `work`, unless somebody asks first: then `work` is dropped where it stands. So it is for waiting and
    /// reading, not for what leaves something half made.
    pub async fn or<T>(&self, work: impl Future<Output = T>) -> anyhow::Result<T> {
        tokio::select! {
            biased;
            () = self.requested() => Err(self.error()),
            value = work => Ok(value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Exit, explain};

    #[tokio::test]
    async fn the_first_signal_is_the_one_that_counts() {
        let stop = Stop::new();
        assert!(stop.check().is_ok());
        assert_eq!(stop.or(async { 7 }).await.unwrap(), 7);

        let clone = stop.clone();
        clone.request(Signal::Terminate);
        clone.request(Signal::Interrupt);
        stop.requested().await;
        assert_eq!(explain(&stop.check().unwrap_err()).0, Exit::Terminated);
        assert_eq!(
            stop.or(std::future::pending::<()>())
                .await
                .unwrap_err()
                .to_string(),
            "terminated"
        );
    }
}

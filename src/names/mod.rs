//! The names at which the platform is reached, and what makes a name work: its certificate ([`tls`]).

pub mod tls;

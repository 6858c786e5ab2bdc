//! The cluster: what a person wrote about it, and (to come) bringing it up.

pub mod kind_config;

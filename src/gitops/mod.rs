//! GitOps: Argo CD in the cluster, the bundles in its git, and the wait until every Application is Synced and Healthy
//! at the pushed revision.
//!
//! [`waves`] decides, purely; [`settle`] watches the Applications and does what it decides: admits bundles, nudges what
//! Argo CD would look at only minutes later, starts what Argo CD gave up on, and ends early on what can't heal.

pub mod argocd;
pub mod explain;
pub mod git;
pub mod provide;
pub mod settle;
pub mod source;
pub mod tree;
pub mod upstream;
pub mod waves;

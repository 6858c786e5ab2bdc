//! The local store of images and charts.

pub mod reference;

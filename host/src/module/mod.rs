//! Guests as code.

pub mod value;

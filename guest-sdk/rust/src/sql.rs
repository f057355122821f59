//! Databases that were granted as resources.

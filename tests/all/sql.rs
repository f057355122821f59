//! Databases as resources.

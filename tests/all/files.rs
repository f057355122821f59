//! Directories as resources and as interfaces.

//! Against SQLite directly.

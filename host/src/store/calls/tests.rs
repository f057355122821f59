//! The queue against a plain map.

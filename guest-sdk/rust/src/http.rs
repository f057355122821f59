//! Requests to servers that were granted as resources.

//! Interfaces that fire at the times of a cron expression.

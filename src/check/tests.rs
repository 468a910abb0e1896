//! Thresholds and the line that plugins write.

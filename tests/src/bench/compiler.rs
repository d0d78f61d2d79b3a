//! The compiler's rows.

use anyhow::Result;

use super::report::Row;

pub(super) fn measure() -> Result<Vec<Row>> {
    Ok(Vec::new())
}

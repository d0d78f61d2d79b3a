//! Use of the flow tables, counted when somebody scrapes, and at most once a minute.

use std::io;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::dataplane::{FlowTables, TableUse};

/// For how long a count is good. Counting a million flows takes 0.3 s of one CPU.
const GOOD_FOR: Duration = Duration::from_secs(60);

/// The tables and their last count.
#[derive(Debug)]
pub(super) struct FlowUse {
    tables: FlowTables,
    last: Mutex<Option<(Instant, Vec<TableUse>)>>,
}

impl FlowUse {
    pub(super) fn new(tables: FlowTables) -> Self {
        Self {
            tables,
            last: Mutex::new(None),
        }
    }

    /// The last count, or a new one where that is too old; counts on a thread of its own.
    pub(super) async fn get(&self) -> io::Result<Vec<TableUse>> {
        let mut last = self.last.lock().await;
        if let Some((at, counted)) = &*last
            && at.elapsed() < GOOD_FOR
        {
            return Ok(counted.clone());
        }
        let tables = self.tables.clone();
        let counted = tokio::task::spawn_blocking(move || tables.count()).await??;
        *last = Some((Instant::now(), counted.clone()));
        Ok(counted)
    }
}

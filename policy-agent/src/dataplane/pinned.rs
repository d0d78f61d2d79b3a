//! Whether the tables that an earlier agent left can be taken over.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError, MapInfo};
use policy_common::endpoint::Endpoint;
use policy_common::map;
use policy_common::service::{MarkBits, SlotInterface};
use policy_core::tables::Tables;

use super::load::OBJECT;
use super::row::Row;

/// Whether every table is pinned in `dir`, made as the object and the configuration want it now, and used by no
/// endpoint whose slot does not fit into `mark`. Where
/// one is not, all are made anew, and the former ones go with the programs that use them.
pub(super) fn fit(dir: &Path, capacities: &BTreeMap<&'static str, u32>, mark: MarkBits) -> bool {
    let Ok(object) = aya_obj::Object::parse(OBJECT) else {
        return false;
    };
    let mut found = 0;
    for spec in map::ALL {
        let Ok(pinned) = MapData::from_pin(dir.join(spec.name)) else {
            continue;
        };
        found += 1;
        let is_like = pinned.info().is_ok_and(|info| {
            object
                .maps
                .get(spec.name)
                .is_some_and(|wanted| is_like(&info, wanted, capacities[spec.name]))
        });
        if !is_like {
            tracing::warn!(
                table = spec.name,
                "the table that an earlier agent left has another form or size: all are made anew, and connections \
                 are judged as if they began now"
            );
            return false;
        }
    }
    match found {
        0 => false,
        found if found < map::ALL.len() => {
            tracing::warn!(
                found,
                of = map::ALL.len(),
                "an earlier agent left some of its tables only: all are made anew"
            );
            false
        }
        _ => match layout(dir) {
            Ok(map::LAYOUT) => slots_fit(dir, mark),
            Ok(layout) => {
                tracing::warn!(
                    layout,
                    ours = map::LAYOUT,
                    "tables of another layout: all are made anew"
                );
                false
            }
            Err(error) => {
                tracing::warn!(%error, "cannot read the tables that an earlier agent left: all are made anew");
                false
            }
        },
    }
}

fn is_like(info: &MapInfo, wanted: &aya_obj::Map, capacity: u32) -> bool {
    info.map_type()
        .is_ok_and(|found| found as u32 == wanted.map_type())
        && info.key_size() == wanted.key_size()
        && info.value_size() == wanted.value_size()
        && info.max_entries() == capacity
        && info.map_flags() == wanted.map_flags()
}

/// Whether every endpoint's slot fits into the mark that is configured now.
fn slots_fit(dir: &Path, mark: MarkBits) -> bool {
    match highest_slot(dir, mark.highest_slot()) {
        Ok(None) => true,
        Ok(Some(slot)) => {
            tracing::warn!(
                slot,
                highest = mark.highest_slot(),
                "an endpoint's id does not fit into PORTCULLIS_MARK_MASK: all tables are made anew, and connections \
                 are judged as if they began now"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "cannot read the tables that an earlier agent left: all are made anew");
            false
        }
    }
}

/// A slot above `limit` that is in use.
fn highest_slot(dir: &Path, limit: u32) -> Result<Option<u32>, MapError> {
    let pinned = MapData::from_pin(dir.join(map::MARK_SLOTS.name))?;
    let slots: Array<_, Row<SlotInterface>> = Map::Array(pinned).try_into()?;
    for slot in (limit.saturating_add(1)..map::MARK_SLOTS.capacity).rev() {
        if slots.get(&slot, 0)?.0.ifindex != 0 {
            return Ok(Some(slot));
        }
    }
    Ok(None)
}

fn layout(dir: &Path) -> Result<u32, MapError> {
    let pinned = MapData::from_pin(dir.join(map::ENDPOINTS.name))?;
    let endpoints: Array<_, Row<Endpoint>> = Map::Array(pinned).try_into()?;
    Ok(endpoints.get(&Tables::GENERATION, 0)?.0.flags)
}

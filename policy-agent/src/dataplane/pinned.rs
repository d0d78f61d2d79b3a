//! Which of the tables that an earlier agent left can be used on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, MapError, MapInfo};
use policy_common::carrier::HIGHEST_SLOT;
use policy_common::endpoint::{Endpoint, Ifindex};
use policy_common::map::{self, MapSpec};
use policy_common::policy::{PeerKey, PolicyHeader, RuleBits};
use policy_common::port::PortData;
use policy_core::tables::Tables as Former;

use super::load::OBJECT;
use super::row::Row;

/// Tables of connections.
pub(super) const FLOWS: [MapSpec; 4] = [
    map::FLOWS_V4,
    map::FLOWS_V6,
    map::FLOWS_NEW_V4,
    map::FLOWS_NEW_V6,
];

/// Tables that the programs write and operations do not. They mean the same beside other rules, as long as
/// endpoints keep their ids.
const WRITTEN_BY_PROGRAMS: [MapSpec; 7] = [
    map::FLOWS_V4,
    map::FLOWS_V6,
    map::FLOWS_NEW_V4,
    map::FLOWS_NEW_V6,
    map::FRAGMENTS,
    map::COUNTERS,
    map::EVENT_BUDGET,
];

/// What an earlier agent left.
pub(super) enum Found {
    /// Nothing that can be used: every table is made anew.
    Nothing,
    /// Every table as it is wanted now.
    All,
    /// Some tables are not as they are wanted now, or their rows mean something else, or there is no room in
    /// them for new rows beside those that are there.
    Some(Box<Kept>),
}

/// What goes over to tables that are made anew.
pub(super) struct Kept {
    /// Tables that are used on.
    pub(super) reused: BTreeSet<&'static str>,
    /// The endpoints with their ids, and nothing else.
    pub(super) former: Former,
}

impl Found {
    /// The tables that are used on.
    pub(super) fn reused(&self) -> BTreeSet<&'static str> {
        match self {
            Self::Nothing => BTreeSet::new(),
            Self::All => map::ALL.iter().map(|spec| spec.name).collect(),
            Self::Some(kept) => kept.reused.clone(),
        }
    }
}

/// How a pinned table compares with what is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Fits,
    Missing,
    OtherSize,
    OtherForm,
}

/// Looks at the tables that are pinned in `dir`.
/// Endpoints keep their ids, so packets have to be able to carry each id's slot.
pub(super) fn look(dir: &Path, capacities: &BTreeMap<&'static str, u32>) -> Found {
    let Ok(object) = aya_obj::Object::parse(OBJECT) else {
        return Found::Nothing;
    };
    let fit = |spec: &MapSpec| {
        let wanted = object.maps.get(spec.name)?;
        let info = MapInfo::from_pin(dir.join(spec.name)).ok()?;
        Some(compare(&info, wanted, capacities[spec.name]))
    };
    let fits: BTreeMap<&'static str, Fit> = map::ALL
        .iter()
        .map(|spec| (spec.name, fit(spec).unwrap_or(Fit::Missing)))
        .collect();
    if fits.values().all(|fit| *fit == Fit::Missing) {
        return Found::Nothing;
    }
    let differing: Vec<_> = fits
        .iter()
        .filter(|(_, fit)| **fit != Fit::Fits)
        .map(|(name, fit)| format!("{name} ({})", fit.as_str()))
        .collect();
    let former = match read_endpoints(dir) {
        // Of an agent that ended before its first plan.
        Ok((layouts, former)) if layouts.rules == 0 && former.endpoints.is_empty() => {
            return Found::Nothing;
        }
        Ok((_, former)) if !fit_carrier(&former) => {
            tracing::warn!(
                highest = HIGHEST_SLOT,
                "packets cannot carry an endpoint's id: all tables are made anew, and connections are judged as if \
                 they began now"
            );
            return Found::Nothing;
        }
        Ok((layouts, former)) if layouts.flows == map::FLOW_LAYOUT => {
            let as_wanted = differing.is_empty() && layouts.rules == map::LAYOUT;
            let is_crowded = as_wanted && is_crowded(dir, capacities);
            if as_wanted && !is_crowded {
                return Found::All;
            }
            tracing::info!(
                ?differing,
                is_crowded,
                layout = layouts.rules,
                ours = map::LAYOUT,
                "tables are made anew beside those that an earlier agent left; connections go on"
            );
            former
        }
        Ok((layouts, _)) => {
            tracing::warn!(
                layout = layouts.flows,
                ours = map::FLOW_LAYOUT,
                "an earlier agent left tables of another layout: all are made anew, and connections are judged as \
                 if they began now"
            );
            return Found::Nothing;
        }
        Err(error) => {
            tracing::warn!(
                %error,
                "cannot read which endpoints an earlier agent left: all tables are made anew, and connections are \
                 judged as if they began now"
            );
            return Found::Nothing;
        }
    };
    let reused = WRITTEN_BY_PROGRAMS.iter().map(|spec| spec.name);
    Found::Some(Box::new(Kept {
        reused: reused.filter(|name| fits[name] == Fit::Fits).collect(),
        former,
    }))
}

impl Fit {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Fits => "fits",
            Self::Missing => "missing",
            Self::OtherSize => "another size",
            Self::OtherForm => "another form",
        }
    }
}

fn compare(info: &MapInfo, wanted: &aya_obj::Map, capacity: u32) -> Fit {
    let same_form = info
        .map_type()
        .is_ok_and(|found| found as u32 == wanted.map_type())
        && info.key_size() == wanted.key_size()
        && info.value_size() == wanted.value_size()
        && info.map_flags() == wanted.map_flags();
    match same_form {
        false => Fit::OtherForm,
        true if info.max_entries() == capacity => Fit::Fits,
        true => Fit::OtherSize,
    }
}

/// Whether a table has too little room for the former rows, the new ones and those that lead over. What
/// cannot be read counts as crowded.
fn is_crowded(dir: &Path, capacities: &BTreeMap<&'static str, u32>) -> bool {
    // Each row has a successor, and both may be seen through a third identity.
    const ROWS_AT_MOST: usize = 4;
    let crowded = |spec: MapSpec, rows: usize| {
        rows.saturating_mul(ROWS_AT_MOST) > capacities[spec.name] as usize
    };
    let look = || -> Result<bool, MapError> {
        let pinned = |spec: MapSpec| MapData::from_pin(dir.join(spec.name));
        let peers: HashMap<_, Row<PeerKey>, Row<RuleBits>> =
            Map::HashMap(pinned(map::PEERS)?).try_into()?;
        let ports: LpmTrie<_, Row<PortData>, Row<RuleBits>> =
            Map::LpmTrie(pinned(map::PORTS)?).try_into()?;
        let policies: Array<_, Row<PolicyHeader>> =
            Map::Array(pinned(map::POLICIES)?).try_into()?;
        let (mut pages, mut counted) = (0, 0);
        for header in policies.iter() {
            let Row(header) = header?;
            pages += usize::from(header.flags & PolicyHeader::VALID != 0);
            if header.first_count != 0 {
                counted += usize::from(header.rules);
            }
        }
        Ok(crowded(map::PEERS, peers.keys().count())
            || crowded(map::PORTS, ports.keys().count())
            || crowded(map::POLICIES, pages)
            || crowded(map::RULE_COUNTS, counted))
    };
    look().unwrap_or(true)
}

/// Whether packets can carry every endpoint's slot.
fn fit_carrier(former: &Former) -> bool {
    former
        .endpoints
        .values()
        .all(|row| row.id & 0xffff <= HIGHEST_SLOT)
}

/// Versions of what the tables hold.
struct Layouts {
    rules: u32,
    flows: u32,
}

/// What is pinned as tables of endpoints, of whatever size.
fn read_endpoints(dir: &Path) -> Result<(Layouts, Former), MapError> {
    let pinned = |spec: MapSpec| MapData::from_pin(dir.join(spec.name));
    let array: Array<_, Row<Endpoint>> = Map::Array(pinned(map::ENDPOINTS)?).try_into()?;
    let beyond: HashMap<_, Row<Ifindex>, Row<Endpoint>> =
        Map::HashMap(pinned(map::ENDPOINTS_EXT)?).try_into()?;
    let head = array.get(&Former::GENERATION, 0)?.0;
    let mut former = Former {
        generation: head.epoch,
        ..Former::default()
    };
    for index in 1..array.len() {
        let row = array.get(&index, 0)?.0;
        if row.id != 0 {
            former.endpoints.insert(index, row);
        }
    }
    for row in beyond.iter() {
        let (Row(key), Row(row)) = row?;
        former.endpoints.insert(key.ifindex, row);
    }
    let layouts = Layouts {
        rules: head.flags,
        flows: head.ingress_policy,
    };
    Ok((layouts, former))
}

use super::*;

const BOTH: ByFamily = ByFamily { v4: true, v6: true };
const ONLY_V4: ByFamily = ByFamily {
    v4: true,
    v6: false,
};

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

/// An endpoint at both addresses, of which the first has entries.
fn coverage(is_used: ByFamily, on_bridges: ByFamily) -> Coverage {
    let mut coverage = Coverage::default();
    let addresses = BTreeSet::from([address("10.0.0.1"), address("fd00::1")]);
    coverage.set_endpoints(addresses);
    coverage.set_visibility(Visibility {
        is_used,
        on_bridges,
    });
    coverage.set_seen(Ok([address("10.0.0.1"), address("10.0.0.9")].into()));
    coverage
}

#[test]
fn what_is_not_seen_for_sure_is_recorded() {
    let nothing = ByFamily::default();
    let both = [address("10.0.0.1"), address("fd00::1")];
    const BRIDGE: u32 = 9;
    let rows = [
        ("seen", BOTH, nothing, 0, &both[..], false),
        ("on a bridge", BOTH, BOTH, BRIDGE, &both, false),
        ("not on bridges", BOTH, nothing, BRIDGE, &both, true),
        ("IPv6 not on bridges", BOTH, ONLY_V4, BRIDGE, &both, true),
        ("without IPv6", BOTH, ONLY_V4, BRIDGE, &both[..1], false),
        ("not used", nothing, BOTH, 0, &both, true),
        ("not used for IPv6", ONLY_V4, BOTH, 0, &both, true),
        ("no entry of its own", BOTH, BOTH, 0, &both[1..], true),
        ("no address", BOTH, BOTH, 0, &[], true),
    ];
    for (what, is_used, on_bridges, master, addresses, expected) in rows {
        let coverage = coverage(is_used, on_bridges);
        assert_eq!(coverage.records(addresses, master), expected, "{what}");
    }
    assert!(Coverage::default().records(&both, 0), "nobody has looked");
}

#[test]
fn other_surroundings_begin_anew() {
    let both = [address("10.0.0.1"), address("fd00::1")];
    let mut coverage = coverage(BOTH, BOTH);
    let other = Visibility {
        is_used: BOTH,
        on_bridges: ONLY_V4,
    };
    assert!(coverage.set_visibility(other));
    assert!(!coverage.set_visibility(other), "nothing changed");
    assert!(coverage.records(&both, 0), "seen before, not since");
    assert!(coverage.set_seen(Ok([both[0]].into())));
    assert!(!coverage.records(&both, 0));
    coverage.set_endpoints([both[1]].into());
    coverage.set_endpoints(both.into());
    assert!(coverage.records(&both, 0), "another endpoint's by now");
}

#[test]
fn entries_are_looked_for_less_and_less_often() {
    let mut coverage = coverage(BOTH, BOTH);
    let begin = Instant::now();
    let mut now = begin;
    let mut asked = Vec::new();
    for _ in 0..40 {
        let (question, later) = coverage.look(now);
        if let Some(question) = question {
            assert_eq!(question, Question::Look([address("fd00::1")].into()));
            asked.push((now - begin).as_secs());
            assert_eq!(coverage.look(now), (None, None), "one at a time");
            coverage.set_seen(Ok(BTreeSet::new()));
        }
        now = later.unwrap_or(now);
    }
    assert_eq!(asked[..5], [2, 6, 14, 30, 62]);
    assert_eq!(asked[15] - asked[14], 300);
    // A new endpoint is looked for soon.
    let addresses = [address("10.0.0.1"), address("fd00::1"), address("10.0.0.2")];
    coverage.set_endpoints(addresses.into());
    let (_, later) = coverage.look(now);
    assert_eq!(later, Some(now + LOOKS[0]));
}

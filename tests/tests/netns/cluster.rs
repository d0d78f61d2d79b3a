//! The cluster by itself: what the other tests take for granted of it.

use std::path::Path;

use super::{Cast, Form, What, check, in_both_forms};
use What::{Fragments, Ping, Tcp, Udp};
use portcullis_tests::netns::{Family, Flow, Outcome, PATIENCE, Probe, SILENCE, Stream, probe};

in_both_forms! {
    exchanges_work_and_their_failures_are_told_apart
    nothing_stays_behind
}

fn exchanges_work_and_their_failures_are_told_apart(form: Form) {
    const NOBODY: u16 = 999;
    let cast = Cast::new(form);
    let outside = cast.node.add_outside("outside", 10).unwrap();
    let (web, db) = (&cast.web, &cast.db);
    let every = [Tcp(80), Udp(53), Fragments(53), Ping];
    let mut rows = Vec::new();
    for (from, to) in [
        (web, db),
        (&*cast.node, db),
        (db, &*cast.node),
        (&outside, db),
        (db, &outside),
    ] {
        rows.extend(every.map(|what| (from, to, what, true)));
    }
    check("all of it", &rows);
    for family in Family::ALL {
        let try_out = |what, patience| {
            let (from, to) = (web.netns(), db.address(family));
            probe(&Probe {
                from,
                to,
                what,
                patience,
            })
        };
        assert_eq!(try_out(Udp(NOBODY), PATIENCE), Outcome::Refused);
        assert_eq!(try_out(Tcp(NOBODY), PATIENCE), Outcome::Refused);
        let mut flow = Flow::open(web.netns(), db.netns(), db.address(family), 9000).unwrap();
        assert!(flow.client_speaks(PATIENCE).unwrap() && flow.server_speaks(PATIENCE).unwrap());
        let stream = Stream::start(web.netns(), db.netns(), db.address(family), 9000).unwrap();
        stream.wait_for_more(500);
        let (sent, arrived) = stream.finish();
        assert_eq!(sent, arrived, "none is lost on the way");
        // Whatever drops on the way looks like silence.
        cast.node.netns().sysctl(forwarding(family), "0").unwrap();
        if form == Form::Routed {
            assert_eq!(try_out(Tcp(80), SILENCE), Outcome::Silent);
            assert!(!flow.client_speaks(SILENCE).unwrap());
            assert!(!flow.server_speaks(SILENCE).unwrap());
        }
    }
}

fn forwarding(family: Family) -> &'static str {
    match family {
        Family::V4 => "net/ipv4/ip_forward",
        Family::V6 => "net/ipv6/conf/all/forwarding",
    }
}

fn nothing_stays_behind(form: Form) {
    let cast = Cast::new(form);
    let names = [&cast.web, &cast.db, &cast.tool, &*cast.node].map(|host| host.netns().path());
    let temporary = cast.node.run_directory().parent().unwrap().to_owned();
    assert!(names.iter().all(|name| Path::new(name).exists()) && temporary.exists());
    let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let _cast = cast;
        std::panic::resume_unwind(Box::new("on the way"));
    }));
    assert!(panic.is_err());
    assert!(
        names.iter().all(|name| !Path::new(name).exists()),
        "{names:?}"
    );
    assert!(!temporary.exists());
}

use policy_core::model::ObjectName;

use super::*;

/// A row of the endpoint at interface 7, which is 10.0.0.1.
fn put(epoch: u32, ingress_policy: u32, flags: u32) -> Op {
    let endpoint = Endpoint {
        epoch,
        id: 5,
        ingress_policy,
        flags: flags | Endpoint::HAS_IPV4,
        ipv4: AddressV4 {
            octets: [10, 0, 0, 1],
        },
        ..Endpoint::default()
    };
    Op::PutEndpoint {
        ifindex: 7,
        endpoint,
    }
}

fn described(is_announced: bool) -> impl Fn(u32) -> Option<Described> + Copy {
    move |ifindex| {
        Some(Described {
            local: LocalEndpoint {
                subject: policy_core::model::Subject::Current,
                origin: policy_core::model::Origin::Announced,
                ifindex,
                host_interface: "veth7".to_owned(),
                interface: "eth0".to_owned(),
                pod: ObjectName::new("shop", "web"),
                addresses: vec![[10, 0, 0, 1].into()],
                is_router: false,
                records: false,
            },
            is_announced,
        })
    }
}

struct Fixture {
    cuts: Cuts,
    now: Instant,
}

impl Fixture {
    fn new() -> Self {
        let mut cuts = Cuts::default();
        cuts.turn_on();
        Self {
            cuts,
            now: Instant::now(),
        }
    }

    fn wait(&mut self, queue: &[Op], is_announced: bool) -> Option<Instant> {
        let queue = queue.iter().cloned().collect();
        let describe = described(is_announced);
        self.cuts.wait(&queue, describe, &BTreeSet::new(), self.now)
    }

    fn apply(&mut self, op: &Op) {
        self.cuts.applied(op, described(false));
    }

    /// Tickets, and the epochs that conversations are put with.
    fn questions(&mut self) -> Vec<(u64, Vec<u32>)> {
        let questions = self.cuts.take_questions().into_iter();
        let questions = questions.map(|question| match question {
            Question::Learn {
                ticket, subjects, ..
            } => (
                ticket,
                subjects.iter().map(|subject| subject.epoch).collect(),
            ),
            Question::Look(_) => panic!("not asked by cuts"),
        });
        questions.collect()
    }

    fn look_again(&mut self) -> Option<Instant> {
        self.cuts.look_again(|_| true, &BTreeSet::new(), self.now)
    }
}

#[test]
fn an_endpoint_is_asked_about_before_and_after_it_is_isolated() {
    let mut fixture = Fixture::new();
    let quiet = put(3, 0, 0);
    assert_eq!(fixture.wait(std::slice::from_ref(&quiet), false), None);
    fixture.apply(&quiet);
    let plan = [put(3, 9, 0), put(4, 9, 0)];
    let until = fixture.wait(&plan, false).expect("waits");
    assert_eq!(until, fixture.now + PATIENCE);
    assert_eq!(fixture.wait(&plan, false), Some(until), "asked once");
    assert_eq!(fixture.questions(), [(1, vec![2])]);
    fixture.cuts.learned(1, None, fixture.now);
    for op in &plan {
        assert_eq!(fixture.wait(std::slice::from_ref(op), false), None);
        fixture.apply(op);
    }
    assert_eq!(fixture.look_again(), None);
    assert_eq!(fixture.questions(), [(2, vec![2])]);
    fixture.cuts.learned(2, None, fixture.now);
    fixture.look_again();
    assert_eq!(fixture.questions(), []);
    // What is isolated already is known.
    let other = put(4, 10, 0);
    assert_eq!(fixture.wait(std::slice::from_ref(&other), false), None);
    fixture.apply(&other);
    fixture.look_again();
    assert_eq!(fixture.questions(), []);
}

#[test]
fn recording_begins_in_the_same_way() {
    let mut fixture = Fixture::new();
    let recording = put(1, 0, Endpoint::RECORD);
    assert!(
        fixture
            .wait(std::slice::from_ref(&recording), false)
            .is_some()
    );
    fixture.cuts.learned(1, None, fixture.now);
    fixture.apply(&recording);
    // What was recorded may have been forgotten since.
    assert!(
        fixture
            .wait(&[put(1, 9, Endpoint::RECORD)], false)
            .is_some()
    );
    // To record no more takes nothing.
    assert_eq!(fixture.wait(&[put(1, 0, 0)], false), None);
}

#[test]
fn nothing_is_waited_for_for_ever() {
    let mut fixture = Fixture::new();
    let isolated = put(1, 9, 0);
    let queue = std::slice::from_ref(&isolated);
    let until = fixture.wait(queue, false).expect("waits");
    fixture.now = until;
    assert_eq!(fixture.wait(queue, false), None);
    assert_eq!(fixture.wait(queue, false), None, "nor again");
    fixture.apply(&isolated);
    fixture.cuts.learned(1, None, fixture.now);
}

#[test]
fn a_pod_that_is_being_started_waits_for_nothing() {
    let mut fixture = Fixture::new();
    let isolated = put(1, 9, 0);
    assert_eq!(fixture.wait(std::slice::from_ref(&isolated), true), None);
    fixture.apply(&isolated);
    fixture.look_again();
    assert_eq!(fixture.questions().len(), 1, "looked at afterwards");
}

#[test]
fn what_failed_is_asked_again_until_it_works() {
    let mut fixture = Fixture::new();
    let isolated = put(1, 9, 0);
    let queue = std::slice::from_ref(&isolated);
    assert!(fixture.wait(queue, false).is_some());
    fixture.cuts.learned(1, Some("no"), fixture.now);
    assert_eq!(fixture.wait(queue, false), None, "isolated all the same");
    fixture.apply(&isolated);
    fixture.questions();
    for ticket in 2..5 {
        assert_eq!(fixture.look_again(), None);
        assert_eq!(fixture.questions(), [(ticket, vec![u32::MAX])]);
        fixture.cuts.learned(ticket, Some("no"), fixture.now);
        fixture.now = fixture.look_again().expect("later");
    }
    fixture.look_again();
    fixture.cuts.learned(5, None, fixture.now);
    fixture.questions();
    fixture.look_again();
    assert_eq!(fixture.questions(), []);
    // One that goes is forgotten.
    fixture.apply(&Op::DeleteEndpoint { ifindex: 7 });
    assert!(fixture.cuts.rows.is_empty());
}

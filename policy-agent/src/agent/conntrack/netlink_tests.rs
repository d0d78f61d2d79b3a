use super::*;

/// As the kernel describes a TCP connection to a Service, of a pod at 10.244.0.2.
fn message(sequence: u32, flags: u16) -> Vec<u8> {
    let tuple = |kind, from: [u8; 4], to: [u8; 4], sport: u16, dport: u16| {
        let mut proto = attribute(number::PROTO_NUM, &[6]);
        proto.extend(attribute(number::PROTO_SRC_PORT, &sport.to_be_bytes()));
        proto.extend(attribute(number::PROTO_DST_PORT, &dport.to_be_bytes()));
        let mut tuple = addresses(from.into(), Some(to.into()));
        tuple.extend(nested(number::TUPLE_PROTO, &proto));
        nested(kind, &tuple)
    };
    let pod = [10, 244, 0, 2];
    let mut body = vec![2, 0, 0, 0];
    body.extend(tuple(number::TUPLE_ORIG, pod, [10, 96, 0, 9], 40000, 80));
    body.extend(tuple(
        number::TUPLE_REPLY,
        [10, 244, 0, 3],
        pod,
        8080,
        40000,
    ));
    body.extend(attribute(number::STATUS, &0x38e_u32.to_be_bytes()));
    let state = attribute(number::PROTOINFO_STATE, &[3]);
    let tcp = nested(number::PROTOINFO_TCP, &state);
    body.extend(nested(number::PROTOINFO, &tcp));
    // A time, which nobody asks for.
    body.extend(attribute(7, &[0, 0, 0, 9]));
    header(number::NEW, flags, sequence, &body)
}

fn header(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = (16 + body.len() as u32).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.extend([0; 4]);
    bytes.extend(body);
    bytes
}

#[test]
fn entries_are_read() {
    let mut bytes = message(1, 0);
    bytes.extend(message(2, number::DUMP_INTERRUPTED));
    let found: Vec<_> = messages(&bytes).collect();
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].sequence, found[1].sequence), (1, 2));
    assert_ne!(found[1].flags & number::DUMP_INTERRUPTED, 0);
    let entry = found[0].entry().expect("an entry");
    let tuple = |saddr: [u8; 4], daddr: [u8; 4], sport, dport| Tuple {
        saddr: saddr.into(),
        daddr: daddr.into(),
        protocol: 6,
        sport,
        dport,
        icmp_id: 0,
        icmp_type: 0,
    };
    let pod = [10, 244, 0, 2];
    assert_eq!(
        entry,
        Entry {
            original: tuple(pod, [10, 96, 0, 9], 40000, 80),
            reply: tuple([10, 244, 0, 3], pod, 8080, 40000),
            status: 0x38e,
            state: 3,
        }
    );
    assert!(entry.is_answered());
}

#[test]
fn what_is_cut_short_is_no_entry_and_no_panic() {
    let whole = message(1, 0);
    for length in 0..whole.len() {
        for found in messages(&whole[..length]) {
            assert_eq!(found.entry(), None, "{length} bytes");
        }
        // As if the message itself were that short.
        let mut short = whole[..length].to_vec();
        if let Some(field) = short.get_mut(..4) {
            field.copy_from_slice(&(length as u32).to_ne_bytes());
        }
        for found in messages(&short) {
            let _may_lack_what_comes_last = found.entry();
        }
    }
}

#[test]
fn errors_are_the_kernels() {
    let bytes = header(number::NLMSG_ERROR, 0, 1, &(-libc::EPERM).to_ne_bytes());
    let found = messages(&bytes).next().expect("a message");
    let error = found.error().expect("an error");
    assert_eq!(error.raw_os_error(), Some(libc::EPERM));
    let bytes = header(number::NLMSG_ERROR, 0, 1, &[0; 4]);
    assert!(messages(&bytes).next().expect("one").error().is_none());
}

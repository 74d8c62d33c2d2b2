//! The reconciliation against a model that keeps every record.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::reconciliation::{Image, OutputRecord, Reconciliation, UnknownAnswer};
use super::*;

const CAPTIONS: Output = Output::Captions;

fn image(partition: i32, offset: i64, index: usize) -> Image {
    Image { partition, offset, index }
}

fn at(output: Output, partition: i32, offset: i64) -> OutputRecord {
    OutputRecord { output, partition, offset }
}

/// One partition, offsets 10 to 19, one image each; 13 has none, 14 three, 15 130.
fn reconciliation() -> Reconciliation {
    let mut reconciliation = Reconciliation::default();
    reconciliation.add_partition(0, 10..20, 25);
    for offset in 10..20 {
        let images = match offset {
            13 => 0,
            14 => 3,
            15 => 130,
            _ => 1,
        };
        reconciliation.add_message(0, offset, images);
    }
    reconciliation
}

#[test]
fn everything_is_answered_once() {
    let mut reconciliation = reconciliation();
    let mut place = 0;
    for offset in (10..20).filter(|offset| *offset != 13) {
        let images = [(14, 3), (15, 130)].into_iter().find(|(many, _)| *many == offset);
        for index in 0..images.map_or(1, |(_, count)| count) {
            reconciliation.add_answer(at(CAPTIONS, 0, place), image(0, offset, index));
            place += 1;
        }
    }
    let report = reconciliation.into_report();
    assert!(report.is_exactly_once());
    assert_eq!(report.total.references, 7 + 3 + 130);
    assert_eq!(report.total.captions, 140);
    assert_eq!((report.total.messages, report.total.reordered), (10, 0));
    assert_eq!((report.unknown.total(), report.out_of_range), (0, 0));
}

#[test]
fn each_problem_is_counted_at_its_partition() {
    let mut reconciliation = reconciliation();
    reconciliation.add_answer(at(CAPTIONS, 0, 0), image(0, 11, 0));
    reconciliation.add_answer(at(CAPTIONS, 0, 1), image(0, 10, 0)); // reordered
    reconciliation.add_answer(at(Output::DeadLetters, 0, 0), image(0, 11, 0)); // twice
    reconciliation.add_answer(at(CAPTIONS, 1, 0), image(0, 14, 2)); // another partition: in order
    reconciliation.add_answer(at(CAPTIONS, 1, 1), image(0, 14, 1)); // reordered within its message
    for never in [image(0, 13, 0), image(0, 14, 3), image(0, 10, 1), image(0, 25, 0)] {
        reconciliation.add_answer(at(CAPTIONS, 1, 2), never);
    }
    reconciliation.add_answer(at(CAPTIONS, 1, 3), image(7, 10, 0)); // no such partition
    reconciliation.add_answer(at(CAPTIONS, 1, 4), image(0, 9, 0)); // before the range
    reconciliation.add_answer(at(CAPTIONS, 1, 5), image(0, 24, 0)); // after it
    reconciliation.add_unknown(at(CAPTIONS, 1, 6), UnknownAnswer::NoSource);
    reconciliation.add_unknown(at(CAPTIONS, 1, 7), UnknownAnswer::OtherTopic);
    reconciliation.add_marker();
    let report = reconciliation.into_report();
    assert!(!report.is_exactly_once());
    let total = &report.total;
    assert_eq!((total.duplicated, total.reordered), (1, 2));
    assert_eq!((total.captions, total.dead_letters), (4, 0));
    assert_eq!(total.missing, 140 - 4);
    assert_eq!(report.unknown, Unknown { no_source: 1, other_topic: 1, never_asked: 5 });
    assert_eq!((report.out_of_range, report.markers), (2, 1));
    let first = |offset, index| Example::Image { partition: 0, offset, index };
    assert_eq!(report.examples.missing[..3], [first(12, 0), first(14, 0), first(15, 0)]);
    assert_eq!(report.examples.missing.len(), 10);
    let twice = Example::Record { topic: Output::DeadLetters, partition: 0, offset: 0 };
    assert_eq!(report.examples.duplicated, [twice]);
    let text = report.to_string();
    assert!(text.contains("missing, the first: 0/12/0, 0/14/0"), "{text}");
}

#[test]
fn offsets_far_apart_cost_no_memory_between_them() {
    let mut reconciliation = Reconciliation::default();
    let far = i64::MAX - 10;
    reconciliation.add_partition(3, 0..i64::MAX, i64::MAX);
    for offset in [0, 70_000, far] {
        reconciliation.add_message(3, offset, 1);
    }
    reconciliation.add_answer(at(CAPTIONS, 0, 0), image(3, far, 0));
    let report = reconciliation.into_report();
    let missing = |offset| Example::Image { partition: 3, offset, index: 0 };
    assert_eq!(report.examples.missing, [missing(0), missing(70_000)]);
    assert_eq!(report.total.captions, 1);
}

#[test]
fn ranges_are_narrowed_and_wrong_ones_named() {
    let known = || Ranges::from([(0, 5..10), (1, 0..4)]);
    let none = Offsets::new();
    let one = |partition, offset| Offsets::from([(partition, offset)]);
    let narrow = |from: &Offsets, to: &Offsets, otherwise| narrowed(known(), from, to, otherwise);
    assert_eq!(narrow(&none, &none, None).unwrap(), known());
    let some = narrow(&one(0, 6), &one(1, 4), None).unwrap();
    assert_eq!(some, Ranges::from([(0, 6..10), (1, 0..4)]));
    // The group has committed nothing of partition 1, and less than the log start of partition 0.
    let committed = narrow(&none, &one(0, 3), Some(0)).unwrap();
    assert_eq!(committed, Ranges::from([(0, 5..5), (1, 0..0)]));
    for (from, to, part) in [
        (one(2, 0), none.clone(), "--from can't be 2=0 (allowed: the partitions 0, 1)"),
        (one(0, 4), none.clone(), "--from can't be 0=4 (allowed: offsets from 5 to 10)"),
        (none.clone(), one(0, 11), "--to can't be 0=11 (allowed: offsets from 5 to 10)"),
    ] {
        let error = narrow(&from, &to, None).unwrap_err();
        assert_eq!((error.exit_code(), error.to_string().as_str()), (2, part));
    }
}

/// Images by partition and offset, and every answer in the order of its topic.
type Run = (BTreeMap<(i32, i64), usize>, Vec<(Output, i32, Image)>);

/// A worker's run, and then random losses, duplicates, swaps and unknown answers.
fn runs() -> impl Strategy<Value = Run> {
    let asked = proptest::collection::btree_map((0..3_i32, 0..40_i64), 0..4_usize, 0..40);
    (asked, proptest::collection::vec((0..5_u8, any::<u16>(), any::<u16>()), 0..12)).prop_map(
        |(asked, faults)| {
            let mut answers: Vec<(Output, i32, Image)> = Vec::new();
            for (&(partition, offset), &images) in &asked {
                for index in 0..images {
                    let output =
                        if offset % 5 == 0 { Output::DeadLetters } else { Output::Captions };
                    answers.push((output, partition % 2, image(partition, offset, index)));
                }
            }
            for (fault, first, second) in faults {
                if answers.is_empty() {
                    continue;
                }
                let (first, second) =
                    (usize::from(first) % answers.len(), usize::from(second) % answers.len());
                match fault {
                    0 => drop(answers.remove(first)),
                    1 => answers.insert(second, answers[first]),
                    2 => answers.swap(first, second),
                    3 => answers[first].2.offset += 40,
                    _ => answers[first].2.index += 2,
                }
            }
            (asked, answers)
        },
    )
}

proptest! {
    #[test]
    fn the_reconciliation_agrees_with_one_that_keeps_every_record((asked, answers) in runs()) {
        let mut reconciliation = Reconciliation::default();
        for partition in 0..3 {
            reconciliation.add_partition(partition, 0..40, 45);
        }
        for (&(partition, offset), &images) in &asked {
            reconciliation.add_message(partition, offset, images);
        }
        for (place, &(output, partition, of)) in answers.iter().enumerate() {
            reconciliation.add_answer(at(output, partition, place as i64), of);
        }
        let report = reconciliation.into_report();

        let open: BTreeSet<Image> = asked
            .iter()
            .flat_map(|(&(partition, offset), &images)| {
                (0..images).map(move |index| image(partition, offset, index))
            })
            .collect();
        let known: Vec<_> = answers.iter().filter(|(_, _, of)| open.contains(of)).collect();
        let distinct: BTreeSet<Image> = known.iter().map(|(_, _, of)| *of).collect();
        let beyond = answers.iter().filter(|(_, _, of)| (40..45).contains(&of.offset)).count();
        let firsts: Vec<_> = known
            .iter()
            .enumerate()
            .filter(|(place, (_, _, of))| known[..*place].iter().all(|(_, _, other)| other != of))
            .map(|(_, answer)| **answer)
            .collect();
        let reordered = firsts
            .iter()
            .enumerate()
            .filter(|(place, (output, partition, of))| {
                firsts[..*place].iter().any(|(other, number, earlier)| {
                    (other, number, earlier.partition) == (output, partition, of.partition)
                        && (earlier.offset, earlier.index) > (of.offset, of.index)
                })
            })
            .count();
        let total = &report.total;
        prop_assert_eq!(total.references, open.len() as u64);
        prop_assert_eq!(total.missing, (open.len() - distinct.len()) as u64);
        prop_assert_eq!(total.duplicated, (known.len() - distinct.len()) as u64);
        prop_assert_eq!(report.out_of_range, beyond as u64);
        prop_assert_eq!(report.unknown.never_asked, (answers.len() - known.len() - beyond) as u64);
        prop_assert_eq!(total.reordered, reordered as u64);
        prop_assert_eq!(total.captions + total.dead_letters, distinct.len() as u64);
    }
}

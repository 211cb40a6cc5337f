//! The metrics in Prometheus' text form. Owns their names, which dashboards and the load generator rely on.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode as encode_registry;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// OpenMetrics 1.0, which Prometheus reads.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

macro_rules! snapshot {
    ($($kind:ident $name:literal $field:ident $help:literal;)*) => {
        /// The gateway's numbers of one moment; the process's own are added at the scrape.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Snapshot {
            $(#[doc = $help] pub $field: u64,)*
            /// Free bytes on the disk of each volume, and of the data directory, with its folder.
            pub free_bytes: Vec<(String, u64)>,
        }

        impl Snapshot {
            fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> std::fmt::Result {
                $($kind(encoder, $name, $help, self.$field)?;)*
                Ok(())
            }
        }
    };
}

// A counter's name gets `_total` behind it when it is written.
snapshot! {
    gauge "culver_connections" connections "Open connections";
    gauge "culver_connections_max" connections_max "Connections that there may be at once";
    gauge "culver_sessions" sessions "Logged-in sessions";
    gauge "culver_rocksdb_memtable_bytes" rocksdb_memtable_bytes "Memory of RocksDB's memtables";
    gauge "culver_rocksdb_block_cache_bytes" rocksdb_block_cache_bytes "Memory of RocksDB's block cache";
    gauge "culver_rocksdb_table_reader_bytes" rocksdb_table_reader_bytes "Memory of RocksDB's table readers";
    gauge "culver_allocated_bytes" allocated_bytes "Memory asked of the allocator and not given back to it, RocksDB's among it";
    gauge "culver_parked_commands" parked_commands "Commands that wait for a read";
    gauge "culver_reactor_connections_min" reactor_connections_min "Connections of the reactor that has the fewest";
    gauge "culver_reactor_connections_max" reactor_connections_max "Connections of the reactor that has the most";
    counter "culver_logins" logins "Logins that succeeded";
    counter "culver_logins_shed" logins_shed "Connections told to come later, for more came than may of all";
    counter "culver_logins_shed_by_source" logins_shed_by_source "Connections told to come later, for more came than may of their source";
    counter "culver_logins_limited" logins_limited "Logins told to come later, for more came than may of their user";
    counter "culver_connections_turned_away" turned_away "Connections for which there was no room";
    gauge "culver_logins_calendar_s" logins_calendar_s "How many seconds from now the last of those comes who were told to come later";
    counter "culver_messages_accepted" messages_accepted "Messages made durable and acknowledged";
    counter "culver_messages_duplicate" messages_duplicate "Messages that had been accepted before";
    counter "culver_entries_delivered" entries_delivered "Inbox entries written to clients";
    counter "culver_acks" acks "Acknowledgements taken from clients";
    counter "culver_batches" batches "Batches made durable";
    counter "culver_messages_rejected" messages_rejected "Messages not accepted";
    counter "culver_sends_limited" sends_limited "Messages not accepted because their device or user sends too fast";
    counter "culver_errors_sent" errors_sent "Connections ended with an error";
    gauge "culver_connections_blocked" connections_blocked "Connections whose sockets have not taken all there is for them";
    gauge "culver_unsent_bytes" unsent_bytes "Bytes that sockets have not taken";
    counter "culver_slow_readers" slow_readers "Connections ended because they do not read";
    counter "culver_keep_alive_timeouts" keep_alive_timeouts "Connections ended because nothing was heard of them";
    counter "culver_goaways" goaways "Clients asked to go";
    gauge "culver_draining" draining "1 where clients are asked to go and the server stays";
    counter "culver_log_reads" log_reads "Pages read from the log for delivery";
    counter "culver_turns" turns "Turns of the event loops";
    counter "culver_wakeups" wakeups "Times a sleeping thread was woken by another";
    gauge "culver_reactors" reactors "Threads that own sockets";
    gauge "culver_hubs" hubs "Threads that own shards";
    gauge "culver_volumes" volumes "Databases, one a volume";
    counter "culver_receipts" receipts "RECEIPTs written to clients";
    counter "culver_rpcs" rpcs "RPCs answered";
    gauge "culver_outbox_behind" outbox_behind "Durable items of streams that their destinations have not taken yet";
    counter "culver_outbox_pushed" outbox_pushed "Items of streams pushed to other hubs, some more than once";
    counter "culver_mail_refused" mail_refused "Mail between hubs that found no room and comes again";
    counter "culver_floors_moved" floors_moved "Floors of inboxes that rose";
    gauge "culver_expiry_clock_ms" expiry_clock_ms "The clock that entries expire by, in milliseconds since 1970";
    gauge "culver_sends_refused" sends_refused "1 where no message is accepted, for a disk has less room than its reserve";
    gauge "culver_expiry_stopped" expiry_stopped "Hubs that expire nothing, for the machine's clock has jumped";
    counter "culver_backups" backups "Backups that were completed";
    counter "culver_backups_failed" backups_failed "Backups that failed or were broken off";
    gauge "culver_backup_last_ms" backup_last_ms "When the last backup was asked for, in milliseconds since 1970; 0: none since the start";
    gauge "culver_backup_held_us" backup_held_us "How long the last backup held all writers, in microseconds";
}

/// The whole page.
pub(super) fn encode(snapshot: &Snapshot, cpu_seconds: f64, resident_bytes: u64) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Page { snapshot: snapshot.clone(), cpu_seconds, resident_bytes }));
    let mut text = String::new();
    encode_registry(&mut text, &registry).expect("a String takes everything");
    text
}

#[derive(Debug)]
struct Page {
    snapshot: Snapshot,
    cpu_seconds: f64,
    resident_bytes: u64,
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        self.snapshot.encode(&mut encoder)?;
        let help = "Bytes that are free for the data on the disk of this folder";
        let mut disks = encoder.encode_descriptor("culver_disk_free_bytes", help, None, MetricType::Gauge)?;
        // A label stands between quotation marks.
        for (path, bytes) in &self.snapshot.free_bytes {
            let path = path.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            ConstGauge::new(*bytes).encode(disks.encode_family(&[("path", path)])?)?;
        }
        gauge(&mut encoder, "culver_process_resident_bytes", "Resident memory of the process", self.resident_bytes)?;
        let help = "CPU time of the process, user and system, all threads";
        write(&mut encoder, "culver_process_cpu_seconds", help, &ConstCounter::new(self.cpu_seconds))
    }
}

fn counter(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> std::fmt::Result {
    write(encoder, name, help, &ConstCounter::new(value))
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> std::fmt::Result {
    write(encoder, name, help, &ConstGauge::new(value))
}

fn write(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl EncodeMetric) -> std::fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_documented() {
        let free_bytes = vec![("/disk1/culver".to_owned(), 7), ("a \"b\"".to_owned(), 8)];
        let snapshot = Snapshot { connections: 3, messages_accepted: 5, free_bytes, ..Snapshot::default() };
        let text = encode(&snapshot, 1.25, 4096);
        for line in [
            "culver_connections 3",
            "culver_sessions 0",
            "culver_process_cpu_seconds_total 1.25",
            "culver_process_resident_bytes 4096",
            "culver_rocksdb_memtable_bytes 0",
            "culver_rocksdb_block_cache_bytes 0",
            "culver_rocksdb_table_reader_bytes 0",
            "culver_reactor_connections_min 0",
            "culver_reactor_connections_max 0",
            "culver_logins_total 0",
            "culver_logins_shed_total 0",
            "culver_logins_shed_by_source_total 0",
            "culver_logins_limited_total 0",
            "culver_connections_turned_away_total 0",
            "culver_logins_calendar_s 0",
            "culver_messages_accepted_total 5",
            "culver_messages_duplicate_total 0",
            "culver_entries_delivered_total 0",
            "culver_acks_total 0",
            "culver_batches_total 0",
            "culver_messages_rejected_total 0",
            "culver_sends_limited_total 0",
            "culver_errors_sent_total 0",
            "culver_connections_blocked 0",
            "culver_unsent_bytes 0",
            "culver_slow_readers_total 0",
            "culver_keep_alive_timeouts_total 0",
            "culver_goaways_total 0",
            "culver_draining 0",
            "culver_log_reads_total 0",
            "culver_turns_total 0",
            "culver_parked_commands 0",
            "culver_wakeups_total 0",
            "culver_reactors 0",
            "culver_hubs 0",
            "culver_volumes 0",
            "culver_receipts_total 0",
            "culver_rpcs_total 0",
            "culver_outbox_behind 0",
            "culver_outbox_pushed_total 0",
            "culver_mail_refused_total 0",
            "culver_floors_moved_total 0",
            "culver_expiry_clock_ms 0",
            "culver_expiry_stopped 0",
            "culver_sends_refused 0",
            r#"culver_disk_free_bytes{path="/disk1/culver"} 7"#,
            r#"culver_disk_free_bytes{path="a \"b\""} 8"#,
            "culver_backups_total 0",
            "culver_backups_failed_total 0",
            "culver_backup_last_ms 0",
            "culver_backup_held_us 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn cpu_time_keeps_its_microseconds() {
        let text = encode(&Snapshot::default(), 12_345.678_901, 0);
        assert!(text.contains("culver_process_cpu_seconds_total 12345.678901"), "{text}");
    }
}

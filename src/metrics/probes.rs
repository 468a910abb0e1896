//! What probes measure from outside, and the host itself.

super::rows! {
    HTTP_STATUS = Gauge None "opsd_http_status" []
        "Status of the last answer, after redirects.";
    HTTP_STATUS_EXPECTED = Gauge None "opsd_http_status_expected" []
        "Whether the status is one of those that are right.";
    HTTP_BODY_EXPECTED = Gauge None "opsd_http_body_expected" []
        "Whether the body holds the text that it must hold; absent where none was asked for.";
    HTTP_JSON_EXPECTED = Gauge None "opsd_http_json_expected" ["pointer"]
        "Whether the value that must stand at this place of the JSON body stands there.";
    HTTP_FIRST_BYTE = Gauge Seconds "opsd_http_first_byte_seconds" []
        "Time from the beginning, connecting and redirects included, until the head of the last answer.";
    HTTP_DURATION = Gauge Seconds "opsd_http_duration_seconds" []
        "Time from the beginning until the end of the body, or until it was no longer waited for: three quarters of the timeout.";
    HTTP_BODY = Gauge Bytes "opsd_http_body_bytes" []
        "Bytes of the body as it was sent (compressed, where it was); at the most as many as are read.";
    HTTP_REDIRECTS = Gauge None "opsd_http_redirects" []
        "Redirects that were followed.";
    HTTP_COMPONENT_UP = Gauge None "opsd_http_component_up" ["component"]
        "Whether a component is well, by the JSON of a health page.";

    TCP_CONNECT = Gauge Seconds "opsd_tcp_connect_seconds" []
        "Time to look up the name and to connect.";

    TLS_HANDSHAKE = Gauge Seconds "opsd_tls_handshake_seconds" []
        "Time to connect and to shake hands.";
    TLS_VERIFICATION_STATE = Gauge None "opsd_tls_verification_state" ["state"]
        of ["verified", "expired", "not_yet_valid", "unknown_issuer", "wrong_name", "version_1", "invalid"]
        "Whether the server's certificates hold: verified, expired, not_yet_valid, unknown_issuer, wrong_name, version_1 (X.509 v1, which cannot name a server) or invalid.";
    TLS_PROTOCOL = Info None "opsd_tls_protocol" ["version"]
        "Which version of TLS was agreed upon.";
    TLS_CERTIFICATE_EXPIRY_TIMESTAMP = Gauge Deadline "opsd_tls_certificate_expiry_timestamp_seconds" ["source", "position", "subject"]
        "When a certificate expires; source is handshake or a file, position 0 the server's own, subject its common name.";
    TLS_EXPIRY_TIMESTAMP = Gauge Deadline "opsd_tls_expiry_timestamp_seconds" ["source"]
        "When what is verified of a chain or a file ends, the trusted authority included; where nothing is, when the first certificate expires.";
    TLS_FILE_UP = Gauge None "opsd_tls_file_up" ["source"]
        "Whether the certificates in a file can be read.";

    HOST_DISK_SIZE = Gauge Bytes "opsd_host_disk_size_bytes" ["path"]
        "Size of the file system that holds a path.";
    HOST_DISK_FREE = Gauge Bytes "opsd_host_disk_free_bytes" ["path"]
        "What ordinary users may still write there.";
    HOST_DISK_USED = Gauge Ratio "opsd_host_disk_used_ratio" ["path"]
        "How much of what ordinary users may use there is used.";
    HOST_DISK_INODES_USED = Gauge Ratio "opsd_host_disk_inodes_used_ratio" ["path"]
        "How many of the inodes there are used; absent where the file system has no such bound.";
    HOST_LOAD = Gauge None "opsd_host_load" ["minutes"]
        "Processes that run or wait for the disk, on average over 1, 5 and 15 minutes.";
    HOST_PROCESSORS = Gauge None "opsd_host_processors" []
        "Processors that opsd may use.";
    HOST_MEMORY = Gauge Bytes "opsd_host_memory_bytes" []
        "Memory of the host.";
    HOST_MEMORY_AVAILABLE = Gauge Bytes "opsd_host_memory_available_bytes" []
        "Memory that programs can still have without swapping.";
    HOST_MEMORY_USED = Gauge Ratio "opsd_host_memory_used_ratio" []
        "How much of the memory is not available.";
    HOST_SWAP = Gauge Bytes "opsd_host_swap_bytes" []
        "Swap of the host.";
    HOST_SWAP_FREE = Gauge Bytes "opsd_host_swap_free_bytes" []
        "Swap that is free.";
    HOST_BOOT_TIMESTAMP = Gauge Timestamp "opsd_host_boot_timestamp_seconds" []
        "When the host was started.";

    MQTT_BROKER = Info None "opsd_mqtt_broker" ["version"]
        "Which broker it is, by its own word.";
    MQTT_CONNECTED_TIMESTAMP = Gauge Timestamp "opsd_mqtt_connected_timestamp_seconds" []
        "Since when opsd is connected.";
    MQTT_ROUND_TRIP = Gauge Seconds "opsd_mqtt_round_trip_seconds" []
        "Time from publishing a message until it arrives again.";
    MQTT_CLIENTS = Gauge None "opsd_mqtt_clients" ["state"]
        of ["connected", "disconnected", "expired"]
        "Clients that the broker knows of: connected, disconnected (with a session that is kept), expired.";
    MQTT_CLIENTS_MAX = Gauge None "opsd_mqtt_clients_max" []
        "Most clients that were connected at the same time.";
    MQTT_MESSAGES_RECEIVED = Counter None "opsd_mqtt_messages_received" []
        "Messages that the broker received.";
    MQTT_MESSAGES_SENT = Counter None "opsd_mqtt_messages_sent" []
        "Messages that the broker sent.";
    MQTT_PUBLISH_RECEIVED = Counter None "opsd_mqtt_publish_received" []
        "Publications that the broker received.";
    MQTT_PUBLISH_SENT = Counter None "opsd_mqtt_publish_sent" []
        "Publications that the broker sent.";
    MQTT_PUBLISH_DROPPED = Counter None "opsd_mqtt_publish_dropped" []
        "Publications that the broker dropped: its limits were reached.";
    MQTT_RECEIVED = Counter Bytes "opsd_mqtt_received_bytes" []
        "Bytes that the broker received.";
    MQTT_SENT = Counter Bytes "opsd_mqtt_sent_bytes" []
        "Bytes that the broker sent.";
    MQTT_SUBSCRIPTIONS = Gauge None "opsd_mqtt_subscriptions" []
        "Subscriptions.";
    MQTT_RETAINED = Gauge None "opsd_mqtt_retained_messages" []
        "Messages that are retained.";
    MQTT_STORED = Gauge None "opsd_mqtt_stored_messages" []
        "Messages that the broker keeps, retained ones and those that wait for a client.";
    MQTT_START_TIMESTAMP = Gauge Timestamp "opsd_mqtt_start_timestamp_seconds" []
        "When the broker was started, to a few seconds.";
}

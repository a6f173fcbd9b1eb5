


SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;


CREATE SCHEMA whatsapp2mqtt;


COMMENT ON SCHEMA whatsapp2mqtt IS 'whatsapp2mqtt 1';


CREATE FUNCTION whatsapp2mqtt.append(entries json, letters json, up double precision, at_boot integer, never_retained text) RETURNS uuid[]
    LANGUAGE plpgsql
    AS $$
    #variable_conflict use_column
    DECLARE
        fresh uuid[] := '{}';
        one record;
        latest_status bigint;
        latest_button bigint;
        nil constant uuid := '00000000-0000-0000-0000-000000000000';
    BEGIN
        -- Each statement below sees what those committed that had their turn before.
        PERFORM take_turn();

        FOR one IN
            INSERT INTO updates (
                seq, partition, boot, kind, event_id, rank, timestamp, received, stored, uptime, topic, event_topic,
                document
            )
            SELECT nextval('places'), p, at_boot, k, e, r, s, t, extract(epoch FROM clock_timestamp()), up, o, v, d
            FROM json_to_recordset(entries) AS given(
                p smallint, k text, e uuid, r integer, s bigint, t double precision, o text, v text, d text
            )
            ON CONFLICT (event_id) DO NOTHING
            RETURNING seq, kind, event_id, rank, timestamp, received, topic
        LOOP
            fresh := fresh || one.event_id;
            IF one.kind = 'button' THEN latest_button := one.seq; ELSE latest_status := one.seq; END IF;

            -- Statuses: rank, then the callback's timestamp, then the identity, so that no order of arrival makes a
            -- difference. Clicks rank alike: the later one wins, and one that claims to come from the future counts as
            -- received now. But one that says that it is later than the holder is so, though it was received before
            -- it: a clock was set back since, or another machine's is behind.
            -- What is never retained has its place in the ledger too, as its rank counts for the next one.
            INSERT INTO ledger AS held (topic, kind, rank, stamp, tie, seq, state, gone)
            VALUES (
                one.topic, one.kind, one.rank,
                CASE one.kind
                    WHEN 'button' THEN least(coalesce(one.timestamp, one.received), one.received)
                    ELSE coalesce(one.timestamp, -1)
                END,
                CASE one.kind WHEN 'button' THEN nil ELSE one.event_id END,
                one.seq,
                CASE WHEN strpos(never_retained, one.kind) > 0 THEN 3 ELSE 0 END,
                CASE WHEN strpos(never_retained, one.kind) > 0 THEN one.seq END
            )
            ON CONFLICT (topic) DO UPDATE
            SET rank = excluded.rank, tie = excluded.tie, seq = excluded.seq, gone = excluded.gone,
                stamp = CASE excluded.kind
                    WHEN 'button' THEN greatest(excluded.stamp, held.stamp) ELSE excluded.stamp
                END,
                state = CASE WHEN excluded.state = 0 THEN 0 WHEN held.state >= 2 THEN held.state ELSE 1 END
            WHERE (excluded.rank, excluded.stamp, excluded.tie) >= (held.rank, held.stamp, held.tie)
               OR (excluded.kind = 'button' AND one.timestamp >= held.stamp);

            IF NOT FOUND THEN
                UPDATE updates SET advances = false WHERE seq = one.seq;
            END IF;
        END LOOP;

        -- The latest of all follow the arrival.
        INSERT INTO ledger AS held (topic, kind, rank, stamp, tie, seq, state, gone)
        SELECT 'last/' || kind, kind, 0, 0, nil, seq,
               CASE WHEN strpos(never_retained, kind) > 0 THEN 3 ELSE 0 END,
               CASE WHEN strpos(never_retained, kind) > 0 THEN seq END
        FROM (VALUES ('status', latest_status), ('button', latest_button)) AS latest(kind, seq)
        WHERE seq IS NOT NULL
        ON CONFLICT (topic) DO UPDATE
        SET seq = excluded.seq, gone = excluded.gone,
            state = CASE WHEN excluded.state = 0 THEN 0 WHEN held.state >= 2 THEN held.state ELSE 1 END;

        INSERT INTO dead_letters (received, source, reason, seq, body)
        SELECT t, s, r, q, decode(b, 'base64')
        FROM json_to_recordset(letters) AS given(t double precision, s text, r text, q bigint, b text);

        -- Heard when this has committed; the same within one transaction is heard once.
        IF fresh <> '{}' THEN
            PERFORM pg_notify(current_schema(), '');
        END IF;
        RETURN fresh;
    END
    $$;


CREATE FUNCTION whatsapp2mqtt.settled() RETURNS bigint
    LANGUAGE sql STABLE
    AS $$
        SELECT coalesce(
            (SELECT min(first.seq) - 1
             FROM partitions CROSS JOIN LATERAL (
                 SELECT seq FROM updates
                 WHERE updates.partition = partitions.partition AND updates.seq > partitions.settled
                 ORDER BY seq LIMIT 1
             ) AS first),
            (SELECT max(settled) FROM partitions))
    $$;


CREATE FUNCTION whatsapp2mqtt.take_turn() RETURNS void
    LANGUAGE sql
    AS $$
        SELECT pg_advisory_xact_lock(2001810033, hashtext(current_schema()))
    $$;

SET default_tablespace = '';

SET default_table_access_method = heap;


CREATE TABLE whatsapp2mqtt.boots (
    id integer NOT NULL,
    machine text NOT NULL COLLATE pg_catalog."C",
    boot text NOT NULL COLLATE pg_catalog."C"
);


ALTER TABLE whatsapp2mqtt.boots ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME whatsapp2mqtt.boots_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


CREATE TABLE whatsapp2mqtt.dead_letters (
    id bigint NOT NULL,
    received double precision NOT NULL,
    source text NOT NULL COLLATE pg_catalog."C",
    reason text NOT NULL COLLATE pg_catalog."C",
    seq bigint,
    body bytea NOT NULL
);


ALTER TABLE whatsapp2mqtt.dead_letters ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME whatsapp2mqtt.dead_letters_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);


CREATE TABLE whatsapp2mqtt.discoveries (
    topic text NOT NULL COLLATE pg_catalog."C"
);


CREATE TABLE whatsapp2mqtt.facts (
    name text NOT NULL COLLATE pg_catalog."C",
    value text NOT NULL COLLATE pg_catalog."C"
);


CREATE TABLE whatsapp2mqtt.learned (
    kind text NOT NULL COLLATE pg_catalog."C",
    key bytea NOT NULL,
    name bytea NOT NULL,
    first bigint NOT NULL,
    last bigint NOT NULL,
    told boolean DEFAULT false NOT NULL
);


CREATE TABLE whatsapp2mqtt.ledger (
    topic text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    rank integer NOT NULL,
    stamp double precision NOT NULL,
    tie uuid NOT NULL,
    seq bigint NOT NULL,
    state smallint NOT NULL,
    gone bigint,
    CONSTRAINT ledger_kind_check CHECK ((kind = ANY (ARRAY['status'::text, 'button'::text])))
);


CREATE TABLE whatsapp2mqtt.partitions (
    partition smallint NOT NULL,
    settled bigint DEFAULT 0 NOT NULL,
    epoch bigint DEFAULT 0 NOT NULL,
    turns bigint DEFAULT 0 NOT NULL,
    owners text[] DEFAULT '{}'::text[] NOT NULL COLLATE pg_catalog."C"
)
WITH (fillfactor='20');


CREATE SEQUENCE whatsapp2mqtt.places
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;


CREATE TABLE whatsapp2mqtt.replicas (
    name text NOT NULL COLLATE pg_catalog."C",
    pid integer NOT NULL,
    reaches boolean NOT NULL,
    seen double precision NOT NULL
);


CREATE TABLE whatsapp2mqtt.ticks (
    elapsed double precision NOT NULL,
    seq bigint NOT NULL
);


CREATE TABLE whatsapp2mqtt.updates (
    seq bigint NOT NULL,
    partition smallint NOT NULL,
    boot integer NOT NULL,
    kind text NOT NULL COLLATE pg_catalog."C",
    event_id uuid NOT NULL,
    rank integer NOT NULL,
    advances boolean DEFAULT true NOT NULL,
    late boolean DEFAULT false NOT NULL,
    "timestamp" bigint,
    received double precision NOT NULL,
    stored double precision NOT NULL,
    uptime double precision NOT NULL,
    topic text NOT NULL COLLATE pg_catalog."C",
    event_topic text NOT NULL COLLATE pg_catalog."C",
    document text NOT NULL COLLATE pg_catalog."C",
    CONSTRAINT updates_kind_check CHECK ((kind = ANY (ARRAY['status'::text, 'button'::text])))
);


COPY whatsapp2mqtt.boots (id, machine, boot) FROM stdin;
1	vm	a56e9879-0eed-4fd5-a640-1293fd5539bf
\.


COPY whatsapp2mqtt.dead_letters (id, received, source, reason, seq, body) FROM stdin;
1	1795687350.5508926	callback	it is not JSON: invalid literal, expected 'true' at character 0	\N	\\x74686973206973206e6f2063616c6c6261636b
\.


COPY whatsapp2mqtt.discoveries (topic) FROM stdin;
homeassistant/event/whatsapp2mqtt_ec8202b6f9/button/config
homeassistant/event/whatsapp2mqtt_ec8202b6f9/message_status/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/last_status/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/last_status_at/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/last_button/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/last_button_at/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/last_failure/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_sent_today/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_sent_total/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_delivered_today/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_delivered_total/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_read_today/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_read_total/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_failed_today/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_failed_total/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_deleted_today/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_deleted_total/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_other_today/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/messages_other_total/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/backlog/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/dead_letters/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/journal_size/config
homeassistant/sensor/whatsapp2mqtt_ec8202b6f9/started_at/config
homeassistant/binary_sensor/whatsapp2mqtt_ec8202b6f9/connectivity/config
homeassistant/binary_sensor/whatsapp2mqtt_ec8202b6f9/problem/config
homeassistant/event/whatsapp2mqtt_ec8202b6f9/15550009999_button/config
homeassistant/event/whatsapp2mqtt_ec8202b6f9/15550009999_message_status/config
homeassistant/device_automation/whatsapp2mqtt_ec8202b6f9/open_gate_4b9fc2eb36/config
homeassistant/device_automation/whatsapp2mqtt_ec8202b6f9/light_on_317cd8117e/config
\.


COPY whatsapp2mqtt.facts (name, value) FROM stdin;
journal	28c157cb5349433b
tally	{"upto":0,"day":"2026-11-26","total":{},"today":{},"failed":null}
\.


COPY whatsapp2mqtt.learned (kind, key, name, first, last, told) FROM stdin;
button	\\x6f70656e5f67617465	\\x4f70656e207468652067617465	5	7	t
phone	\\x3135353530303039393939	\\x3135353530303039393939	1	8	f
button	\\x6c696768745f6f6e	\\x4c69676874206f6e	8	8	t
\.


COPY whatsapp2mqtt.ledger (topic, kind, rank, stamp, tie, seq, state, gone) FROM stdin;
wamid.upgrade/status	status	5	1795687350	8c83a2a2-746b-0768-0ffa-0dfffe69bacc	4	0	\N
last/status	status	0	0	00000000-0000-0000-0000-000000000000	4	0	\N
button/open_gate	button	0	1795687350	00000000-0000-0000-0000-000000000000	7	0	\N
button/light_on	button	0	1795687350	00000000-0000-0000-0000-000000000000	8	0	\N
last/button	button	0	0	00000000-0000-0000-0000-000000000000	8	0	\N
\.


COPY whatsapp2mqtt.partitions (partition, settled, epoch, turns, owners) FROM stdin;
0	8	1	1	{}
1	4	1	1	{}
2	4	1	1	{}
3	4	1	1	{}
4	4	1	1	{}
5	4	1	1	{}
6	4	1	1	{}
7	4	1	1	{}
8	4	1	1	{}
9	4	1	1	{}
10	4	1	1	{}
11	4	1	1	{}
12	4	1	1	{}
13	4	1	1	{}
14	4	1	1	{}
15	4	1	1	{}
\.


COPY whatsapp2mqtt.replicas (name, pid, reaches, seen) FROM stdin;
vm	21278	t	1795687350.041136
\.


COPY whatsapp2mqtt.ticks (elapsed, seq) FROM stdin;
\.


COPY whatsapp2mqtt.updates (seq, partition, boot, kind, event_id, rank, advances, late, "timestamp", received, stored, uptime, topic, event_topic, document) FROM stdin;
1	13	1	status	3a8d4dbe-62af-4741-002e-23fa4eea3352	1	t	f	1795687350	1795687350.3675027	1795687350.380304	50223.789862909	wamid.upgrade/status	event/status/sent	{"message_id":"wamid.upgrade","status":"sent","timestamp":1795687350,"received_at":"2026-11-26T10:02:30.367Z","recipient_id":"15550001234","conversation":{"id":"7218db6b2af18c028fc7d97f44b44804","origin":{"type":"business_initiated"},"expiration_timestamp":"1795773750"},"business_phone":"15550009999","event_id":"3a8d4dbe62af4741002e23fa4eea3352"}
2	13	1	status	d415313c-4680-5b6a-54af-37d9e7823a06	2	t	f	1795687350	1795687350.3840199	1795687350.386144	50223.797137593	wamid.upgrade/status	event/status/delivered	{"message_id":"wamid.upgrade","status":"delivered","timestamp":1795687350,"received_at":"2026-11-26T10:02:30.384Z","recipient_id":"15550001234","conversation":{"id":"e1f7e56267b9e5fca977a03da60a4a8f","origin":{"type":"business_initiated"}},"business_phone":"15550009999","event_id":"d415313c46805b6a54af37d9e7823a06"}
3	13	1	status	ce7a3a5c-0c91-a3d7-7526-a1489a03b961	3	t	f	1795687350	1795687350.3892272	1795687350.390236	50223.801033715	wamid.upgrade/status	event/status/read	{"message_id":"wamid.upgrade","status":"read","timestamp":1795687350,"received_at":"2026-11-26T10:02:30.389Z","recipient_id":"15550001234","business_phone":"15550009999","event_id":"ce7a3a5c0c91a3d77526a1489a03b961"}
4	13	1	status	8c83a2a2-746b-0768-0ffa-0dfffe69bacc	5	t	f	1795687350	1795687350.3922455	1795687350.392649	50223.803656923	wamid.upgrade/status	event/status/failed	{"message_id":"wamid.upgrade","status":"failed","timestamp":1795687350,"received_at":"2026-11-26T10:02:30.392Z","recipient_id":"15550001234","errors":[{"code":131026,"title":"Message undeliverable"}],"business_phone":"15550009999","event_id":"8c83a2a2746b07680ffa0dfffe69bacc"}
5	0	1	button	6dab749e-e01f-299a-58af-d41dc0c63de5	0	t	f	1795687350	1795687350.3939645	1795687350.394814	50223.805400519	button/open_gate	event/button/open_gate	{"payload":"open_gate","text":"Open the gate","event_type":"open_gate","message_id":"wamid.HQQYCzE1NTUwMDAxMjM0FQIAERgSQzlFMDk3OUI4ODIxNDFBN0IxAA==","from":"15550001234","name":"Somebody","timestamp":1795687350,"received_at":"2026-11-26T10:02:30.393Z","context":{"from":"15550009999","id":"wamid.HQQYCzE1NTUwMDAxMjM0FQIAERgSNDJDRjY5QzgxQTAxMjMxRTRCAA=="},"tag_name":"simulated","template":{"id":1,"name":"somebody_is_at_the_gate","parameters":["the garden gate"]},"wa_ext":"{\\"templateId\\":1,\\"templateName\\":\\"somebody_is_at_the_gate\\",\\"components\\":[{\\"type\\":\\"body\\",\\"parameters\\":[{\\"type\\":\\"text\\",\\"text\\":\\"the garden gate\\"}]}]}","business_phone":"15550009999","event_id":"6dab749ee01f299a58afd41dc0c63de5"}
7	0	1	button	a6605bb1-4ec1-796a-d25e-18686616a1f3	0	t	f	1795687350	1795687350.3990307	1795687350.399364	50223.810453294	button/open_gate	event/button/open_gate	{"payload":"open_gate","text":"Open the gate","event_type":"open_gate","message_id":"wamid.HQQYCzE1NTUwMDAxMjM0FQIAERgSRkE2QTgyRUU2Q0ZCM0Y1QjJDAA==","from":"15550001234","name":"Somebody","timestamp":1795687350,"received_at":"2026-11-26T10:02:30.399Z","context":{"from":"15550009999","id":"wamid.HQQYCzE1NTUwMDAxMjM0FQIAERgSQTI3Mjk4NjZBNTBERDNENjVCAA=="},"tag_name":"simulated","template":{"id":1,"name":"somebody_is_at_the_gate","parameters":["the garden gate"]},"wa_ext":"{\\"templateId\\":1,\\"templateName\\":\\"somebody_is_at_the_gate\\",\\"components\\":[{\\"type\\":\\"body\\",\\"parameters\\":[{\\"type\\":\\"text\\",\\"text\\":\\"the garden gate\\"}]}]}","business_phone":"15550009999","event_id":"a6605bb14ec1796ad25e18686616a1f3"}
8	0	1	button	761fe478-0af7-ef48-7561-a31c61863df8	0	t	f	1795687350	1795687350.5331204	1795687350.53387	50223.944765403	button/light_on	event/button/light_on	{"payload":"light_on","text":"Light on","event_type":"light_on","message_id":"wamid.HQQYCzE1NTUwMDAxMjM0FQIAERgSNUUzN0EwMDc2NkEyMUQzRUUzAA==","from":"15550001234","name":"Somebody","timestamp":1795687350,"received_at":"2026-11-26T10:02:30.533Z","context":{"from":"15550009999","id":"wamid.HQQYCzE1NTUwMDAxMjM0FQIAERgSNzlCQTdCRUM5RTA2MkZGRkVGAA=="},"tag_name":"simulated","template":{"id":1,"name":"somebody_is_at_the_gate","parameters":["the garden gate"]},"wa_ext":"{\\"templateId\\":1,\\"templateName\\":\\"somebody_is_at_the_gate\\",\\"components\\":[{\\"type\\":\\"body\\",\\"parameters\\":[{\\"type\\":\\"text\\",\\"text\\":\\"the garden gate\\"}]}]}","business_phone":"15550009999","event_id":"761fe4780af7ef487561a31c61863df8"}
\.


SELECT pg_catalog.setval('whatsapp2mqtt.boots_id_seq', 1, true);


SELECT pg_catalog.setval('whatsapp2mqtt.dead_letters_id_seq', 1, true);


SELECT pg_catalog.setval('whatsapp2mqtt.places', 8, true);


ALTER TABLE ONLY whatsapp2mqtt.boots
    ADD CONSTRAINT boots_machine_boot_key UNIQUE (machine, boot);


ALTER TABLE ONLY whatsapp2mqtt.boots
    ADD CONSTRAINT boots_pkey PRIMARY KEY (id);


ALTER TABLE ONLY whatsapp2mqtt.dead_letters
    ADD CONSTRAINT dead_letters_pkey PRIMARY KEY (id);


ALTER TABLE ONLY whatsapp2mqtt.discoveries
    ADD CONSTRAINT discoveries_pkey PRIMARY KEY (topic);


ALTER TABLE ONLY whatsapp2mqtt.facts
    ADD CONSTRAINT facts_pkey PRIMARY KEY (name);


ALTER TABLE ONLY whatsapp2mqtt.learned
    ADD CONSTRAINT learned_pkey PRIMARY KEY (kind, key);


ALTER TABLE ONLY whatsapp2mqtt.ledger
    ADD CONSTRAINT ledger_pkey PRIMARY KEY (topic);


ALTER TABLE ONLY whatsapp2mqtt.partitions
    ADD CONSTRAINT partitions_pkey PRIMARY KEY (partition);


ALTER TABLE ONLY whatsapp2mqtt.replicas
    ADD CONSTRAINT replicas_pkey PRIMARY KEY (name);


ALTER TABLE ONLY whatsapp2mqtt.ticks
    ADD CONSTRAINT ticks_pkey PRIMARY KEY (elapsed);


ALTER TABLE ONLY whatsapp2mqtt.updates
    ADD CONSTRAINT updates_event_id_key UNIQUE (event_id);


ALTER TABLE ONLY whatsapp2mqtt.updates
    ADD CONSTRAINT updates_pkey PRIMARY KEY (seq);


CREATE INDEX ledger_clearing ON whatsapp2mqtt.ledger USING btree (seq) WHERE (state = 1);


CREATE INDEX ledger_gone ON whatsapp2mqtt.ledger USING btree (gone) WHERE (state >= 2);


CREATE INDEX ledger_standing ON whatsapp2mqtt.ledger USING btree (seq, topic) WHERE (state = 0);


CREATE INDEX updates_partition ON whatsapp2mqtt.updates USING btree (partition, seq);




CREATE TABLE alembic_version (
    version_num character varying(32) NOT NULL
);
CREATE TABLE draw (
    id bigint NOT NULL,
    tree_id bigint NOT NULL,
    "row" bigint NOT NULL,
    node_id bigint NOT NULL,
    solution_id bigint,
    policy_id bigint,
    sampler_id bigint,
    parent bigint NOT NULL,
    "offset" bigint NOT NULL,
    k bigint NOT NULL,
    seed bigint NOT NULL,
    finish character varying(8) NOT NULL,
    policy_version bigint NOT NULL,
    source bigint NOT NULL,
    logprobs bytea NOT NULL,
    entropies bytea NOT NULL,
    versions bytea,
    mask bytea,
    CONSTRAINT ck_draw_arrays CHECK ((length(logprobs) = length(entropies))),
    CONSTRAINT ck_draw_finish CHECK (((finish)::text = ANY ((ARRAY['open'::character varying, 'stop'::character varying, 'cut'::character varying, 'length'::character varying])::text[]))),
    CONSTRAINT ck_draw_policy CHECK (((source > 0) OR (policy_id IS NOT NULL))),
    CONSTRAINT ck_draw_source CHECK ((source >= 0))
);
CREATE SEQUENCE draw_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE draw_id_seq OWNED BY draw.id;
CREATE TABLE item (
    id bigint NOT NULL,
    pool_id bigint NOT NULL,
    draw_id bigint NOT NULL,
    priority double precision NOT NULL,
    step bigint NOT NULL,
    CONSTRAINT ck_item_priority CHECK (((priority >= (0)::double precision) AND (priority <= ('1000000'::numeric)::double precision)))
);
CREATE SEQUENCE item_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE item_id_seq OWNED BY item.id;
CREATE TABLE item_use (
    item_id bigint NOT NULL,
    step bigint NOT NULL,
    times bigint NOT NULL,
    probability double precision NOT NULL,
    size bigint NOT NULL,
    CONSTRAINT ck_item_use_probability CHECK (((probability > (0)::double precision) AND (probability <= (1)::double precision))),
    CONSTRAINT ck_item_use_times CHECK ((times > 0))
);
CREATE TABLE meta (
    id integer NOT NULL,
    hash_scheme character varying(64) NOT NULL,
    created_by character varying(64) NOT NULL,
    CONSTRAINT ck_meta_single CHECK ((id = 1))
);
CREATE SEQUENCE meta_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE meta_id_seq OWNED BY meta.id;
CREATE TABLE node (
    id bigint NOT NULL,
    path_key bytea NOT NULL,
    start bigint NOT NULL,
    prompt_id bigint NOT NULL,
    n_tokens bigint NOT NULL,
    tokens bytea NOT NULL,
    CONSTRAINT ck_node_start CHECK ((start >= 0)),
    CONSTRAINT ck_node_tokens CHECK (((n_tokens > 0) AND (length(tokens) = (4 * n_tokens))))
);
CREATE SEQUENCE node_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE node_id_seq OWNED BY node.id;
CREATE TABLE phase (
    run_id character varying(26) NOT NULL,
    number bigint NOT NULL,
    step bigint NOT NULL,
    kind character varying(16) NOT NULL,
    data text NOT NULL,
    CONSTRAINT ck_phase_place CHECK (((number >= 0) AND (step >= 0)))
);
CREATE TABLE policy (
    id bigint NOT NULL,
    key bytea NOT NULL,
    name text NOT NULL,
    digest text NOT NULL,
    version bigint NOT NULL
);
CREATE SEQUENCE policy_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE policy_id_seq OWNED BY policy.id;
CREATE TABLE pool (
    id bigint NOT NULL,
    run_id character varying(26) NOT NULL,
    name character varying(64) NOT NULL,
    sampler character varying(16) NOT NULL,
    remover character varying(16) NOT NULL,
    max_size bigint NOT NULL,
    max_times_sampled bigint,
    max_age bigint,
    CONSTRAINT ck_pool_max_age CHECK ((max_age >= 0)),
    CONSTRAINT ck_pool_max_size CHECK ((max_size > 0)),
    CONSTRAINT ck_pool_max_times_sampled CHECK ((max_times_sampled > 0)),
    CONSTRAINT ck_pool_remover CHECK (((remover)::text = ANY ((ARRAY['oldest'::character varying, 'lowest'::character varying])::text[]))),
    CONSTRAINT ck_pool_sampler CHECK (((sampler)::text = ANY ((ARRAY['uniform'::character varying, 'prioritised'::character varying, 'oldest'::character varying, 'newest'::character varying])::text[])))
);
CREATE SEQUENCE pool_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE pool_id_seq OWNED BY pool.id;
CREATE TABLE problem (
    id bigint NOT NULL,
    key bytea NOT NULL,
    kind text NOT NULL,
    question text NOT NULL,
    truth text NOT NULL,
    columns text NOT NULL,
    columns_key bytea
);
CREATE SEQUENCE problem_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE problem_id_seq OWNED BY problem.id;
CREATE TABLE prompt (
    id bigint NOT NULL,
    key bytea NOT NULL,
    problem_id bigint NOT NULL,
    tokenizer text NOT NULL,
    n_tokens bigint NOT NULL,
    tokens bytea NOT NULL,
    CONSTRAINT ck_prompt_tokens CHECK (((n_tokens > 0) AND (length(tokens) = (4 * n_tokens))))
);
CREATE SEQUENCE prompt_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE prompt_id_seq OWNED BY prompt.id;
CREATE TABLE run (
    id character varying(26) NOT NULL,
    name character varying(255) NOT NULL,
    config text NOT NULL,
    git_commit character varying(64),
    created_us bigint NOT NULL
);
CREATE TABLE sampler (
    id bigint NOT NULL,
    key bytea NOT NULL,
    params text NOT NULL
);
CREATE SEQUENCE sampler_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE sampler_id_seq OWNED BY sampler.id;
CREATE TABLE solution (
    id bigint NOT NULL,
    path_key bytea NOT NULL,
    prompt_id bigint NOT NULL,
    n_tokens bigint NOT NULL,
    text text,
    text_key bytea
);
CREATE SEQUENCE solution_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE solution_id_seq OWNED BY solution.id;
CREATE TABLE tree (
    id bigint NOT NULL,
    run_id character varying(26) NOT NULL,
    problem_id bigint NOT NULL,
    prompt_id bigint,
    step bigint NOT NULL,
    number bigint NOT NULL,
    seed bigint NOT NULL,
    max_completion_length bigint NOT NULL,
    meta text NOT NULL,
    content_key bytea,
    state_key bytea,
    n_nodes bigint NOT NULL,
    n_leaves bigint NOT NULL,
    n_right bigint NOT NULL,
    n_generated bigint NOT NULL,
    n_cached bigint NOT NULL,
    state character varying(8) NOT NULL,
    owner text,
    lease_until_us bigint,
    attempts bigint NOT NULL,
    created_us bigint NOT NULL,
    CONSTRAINT ck_tree_done CHECK ((((state)::text <> 'done'::text) OR (prompt_id IS NOT NULL))),
    CONSTRAINT ck_tree_lease CHECK ((((state)::text = 'running'::text) = (lease_until_us IS NOT NULL))),
    CONSTRAINT ck_tree_state CHECK (((state)::text = ANY ((ARRAY['queued'::character varying, 'running'::character varying, 'done'::character varying])::text[])))
);
CREATE SEQUENCE tree_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE tree_id_seq OWNED BY tree.id;
CREATE TABLE verdict (
    solution_id bigint NOT NULL,
    verifier_id bigint NOT NULL,
    outcome character varying(8) NOT NULL,
    reward double precision,
    answer text,
    detail text,
    seconds double precision NOT NULL,
    "position" bigint NOT NULL,
    row_key bytea,
    CONSTRAINT ck_verdict_outcome CHECK (((outcome)::text = ANY ((ARRAY['scored'::character varying, 'skipped'::character varying, 'timeout'::character varying, 'error'::character varying])::text[]))),
    CONSTRAINT ck_verdict_reward CHECK (((reward >= ('-1000000'::numeric)::double precision) AND (reward <= ('1000000'::numeric)::double precision))),
    CONSTRAINT ck_verdict_scored CHECK ((((outcome)::text = 'scored'::text) = (reward IS NOT NULL)))
);
CREATE TABLE verifier (
    id bigint NOT NULL,
    key bytea NOT NULL,
    name text NOT NULL,
    version text NOT NULL,
    config text NOT NULL
);
CREATE SEQUENCE verifier_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
ALTER SEQUENCE verifier_id_seq OWNED BY verifier.id;
CREATE TABLE visit (
    tree_id bigint NOT NULL,
    "row" bigint NOT NULL,
    parent_row bigint NOT NULL,
    draw_row bigint NOT NULL,
    start bigint NOT NULL,
    stop bigint NOT NULL,
    "offset" bigint NOT NULL,
    visits bigint NOT NULL,
    value_sum double precision NOT NULL,
    prior double precision,
    finish character varying(8) NOT NULL,
    origin character varying(16) NOT NULL,
    chosen_by_token boolean NOT NULL,
    selected boolean NOT NULL,
    reward double precision,
    outcome character varying(8),
    answer text,
    detail text,
    seconds double precision,
    CONSTRAINT ck_visit_finish CHECK (((finish)::text = ANY ((ARRAY['open'::character varying, 'stop'::character varying, 'cut'::character varying, 'length'::character varying])::text[]))),
    CONSTRAINT ck_visit_judged CHECK (((outcome IS NULL) = (seconds IS NULL))),
    CONSTRAINT ck_visit_reward CHECK (((reward >= ('-1000000'::numeric)::double precision) AND (reward <= ('1000000'::numeric)::double precision)))
);
ALTER TABLE ONLY draw ALTER COLUMN id SET DEFAULT nextval('draw_id_seq'::regclass);
ALTER TABLE ONLY item ALTER COLUMN id SET DEFAULT nextval('item_id_seq'::regclass);
ALTER TABLE ONLY meta ALTER COLUMN id SET DEFAULT nextval('meta_id_seq'::regclass);
ALTER TABLE ONLY node ALTER COLUMN id SET DEFAULT nextval('node_id_seq'::regclass);
ALTER TABLE ONLY policy ALTER COLUMN id SET DEFAULT nextval('policy_id_seq'::regclass);
ALTER TABLE ONLY pool ALTER COLUMN id SET DEFAULT nextval('pool_id_seq'::regclass);
ALTER TABLE ONLY problem ALTER COLUMN id SET DEFAULT nextval('problem_id_seq'::regclass);
ALTER TABLE ONLY prompt ALTER COLUMN id SET DEFAULT nextval('prompt_id_seq'::regclass);
ALTER TABLE ONLY sampler ALTER COLUMN id SET DEFAULT nextval('sampler_id_seq'::regclass);
ALTER TABLE ONLY solution ALTER COLUMN id SET DEFAULT nextval('solution_id_seq'::regclass);
ALTER TABLE ONLY tree ALTER COLUMN id SET DEFAULT nextval('tree_id_seq'::regclass);
ALTER TABLE ONLY verifier ALTER COLUMN id SET DEFAULT nextval('verifier_id_seq'::regclass);
INSERT INTO alembic_version VALUES ('0006');
INSERT INTO draw VALUES (1, 1, 1, 2, 2, 1, 1, 0, 3, 0, 8445882466174993074, 'stop', 0, 0, '\xacefe5bed5f71dbf65cd8abf', '\x591fde3f32ada43f4b50943e', NULL, NULL);
INSERT INTO draw VALUES (2, 1, 2, 1, 1, 1, 1, 0, 3, 1, 7827622730034558482, 'stop', 0, 0, '\x65322abec4af11bf', '\x6a0c873eae7d233f', NULL, NULL);
INSERT INTO draw VALUES (3, 2, 1, 2, 2, 1, 1, 0, 3, -1, 7331177000832087236, 'stop', 0, 1, '\xacefe5bed5f71dbf65cd8abf', '\x591fde3f32ada43f4b50943e', NULL, NULL);
INSERT INTO draw VALUES (4, 2, 2, 3, 3, 1, 1, 0, 3, 0, 2053262564533708047, 'stop', 0, 0, '\x71a7abbf16bd91bfbd9c08be1270dbbb', '\xa7fec73d2bf0943e00b6c03f4fca943f', NULL, NULL);
INSERT INTO draw VALUES (5, 3, 1, 2, 2, 1, 1, 0, 3, -1, 30869877684756383, 'stop', 0, 1, '\xacefe5bed5f71dbf65cd8abf', '\x591fde3f32ada43f4b50943e', NULL, NULL);
INSERT INTO draw VALUES (6, 3, 2, 3, 3, 1, 1, 0, 3, 0, 8445882466174993074, 'stop', 0, 0, '\x71a7abbf16bd91bfbd9c08be1270dbbb', '\xa7fec73d2bf0943e00b6c03f4fca943f', NULL, NULL);
INSERT INTO draw VALUES (7, 4, 1, 9, 8, 1, 1, 0, 3, 0, 7015342360769698092, 'stop', 0, 0, '\xb0d783bf806440bf7a9ea6bfd1610abfa73ffebe', '\x4c78043f9359f83e53754a3e686cdc3f3656bb3f', NULL, NULL);
INSERT INTO draw VALUES (8, 4, 2, 9, 8, 1, 1, 0, 3, 1, 1589915632127064207, 'stop', 0, 0, '\x84999abec5cc45bf6916fdbd6c9b16bf3a6cf5bf', '\x0fdd953f35f0e33fb610243f72da2f3f9b13e23f', NULL, NULL);
INSERT INTO draw VALUES (9, 4, 3, 8, NULL, 1, 1, 0, 3, 2, 5043103239560817435, 'cut', 0, 0, '\xa2142ebeda40c0befd616fbf', '\xf6c8883eefe2853efeeb843b', NULL, NULL);
INSERT INTO draw VALUES (10, 4, 4, 7, 7, 3, 1, 1, 2, 0, 4490894176261450969, 'stop', 1, 0, '\x39b1fdbe57e424bd', '\x44c64b3fd327943f', NULL, NULL);
INSERT INTO draw VALUES (11, 4, 5, 11, 10, 3, 1, 1, 2, 1, 49593781764619002, 'length', 1, 0, '\x329784bf29dc4abf7613cebfcdf2aebf216ba7bfd9d631bf8d61d5bf632b6dbe7b5732bd93f308c0', '\x331c163f87a6213f58151c3e6705dc3f41513b3f60b9723ec422d53e01d9b33f21da323f3ec3ec3f', NULL, NULL);
INSERT INTO draw VALUES (12, 4, 6, 10, 9, 2, 1, 3, 3, 0, 3580692421537139247, 'stop', 2, 0, '\x531920bfbfa2c4be5804f1be', '\xb1cb083ee4163d3e0000c07f', '\x010000000200000002000000', '\x010001');
INSERT INTO meta VALUES (1, 'blake2b-128/lp1', 'treerl 0.1.0');
INSERT INTO node VALUES (1, '\x5303d14133774fb101d063ac2a01fff4', 0, 1, 2, '\x0600000002000000');
INSERT INTO node VALUES (2, '\xdcfdd857383ba051769c71ac1657d94b', 0, 1, 3, '\x040000000500000002000000');
INSERT INTO node VALUES (3, '\x19b49d6ccf8c7b23a9d04ee7ba2ea6cd', 0, 1, 4, '\x08000000080000000800000002000000');
INSERT INTO node VALUES (7, '\x00f17f6df95116f7ed4550bf9ba78c64', 2, 2, 2, '\x0700000002000000');
INSERT INTO node VALUES (8, '\x29509e91d1992d3088f305a8dd3dfcdf', 0, 2, 3, '\x080000000800000008000000');
INSERT INTO node VALUES (9, '\x67184d8a6f17ec493e17fac3840fc242', 0, 2, 5, '\x0400000005000000060000000700000002000000');
INSERT INTO node VALUES (10, '\x880eb3ba07c9aea99627930a90b5889a', 3, 2, 3, '\x090000000900000002000000');
INSERT INTO node VALUES (11, '\xb3af5c4175d0e553008cae0c3c078d5b', 2, 2, 10, '\x05000000050000000500000005000000050000000500000005000000050000000500000005000000');
INSERT INTO policy VALUES (1, '\x033949bb7a6a04d60b587b069f7e9087', 'tiny', 'base', 0);
INSERT INTO policy VALUES (2, '\x034e0c01d6567b071da3f621f7b27659', 'tiny', 'base', 2);
INSERT INTO policy VALUES (3, '\xf02f0461cb5a44e654dd396e3ef351c4', 'tiny', 'base', 1);
INSERT INTO problem VALUES (1, '\xeb4a16024ce5a72a7038a1ac41a40865', 'chain', '7+5=', '12', '{"level":3}', '\xa2126d183e7e306c8a5607d87afca3de');
INSERT INTO problem VALUES (2, '\x2ed12c66994b3bfabeea6fd1e563d3dd', 'chain', '2', '2', '{}', '\x85eac477c45b5936688a94a9195793ea');
INSERT INTO prompt VALUES (1, '\x9e5e06131d53622e8333462bde9ec97a', 1, 'chars', 3, '\x010000000900000003000000');
INSERT INTO prompt VALUES (2, '\x7dd4ef90031494d45d206a24aa77cf33', 2, 'chars', 3, '\x010000000900000003000000');
INSERT INTO run VALUES ('01M8EXEE5ZVNXDHXF3HGQ82X7V', 'a', '{}', NULL, 1795796973760583);
INSERT INTO run VALUES ('01M8EXEE61ZJ8G0P8X3F1SET97', 'b', '{}', NULL, 1795796973761573);
INSERT INTO sampler VALUES (1, '\xac00da856d15e5940a782494a2e920fe', '{"temperature":1.0}');
INSERT INTO solution VALUES (1, '\x5303d14133774fb101d063ac2a01fff4', 1, 2, 't1', '\x5710c7460f161ea19b4f9afff23f4d2a');
INSERT INTO solution VALUES (2, '\xdcfdd857383ba051769c71ac1657d94b', 1, 3, 't0', '\x55d60a7be68be322d554a6943a5a3dba');
INSERT INTO solution VALUES (3, '\x19b49d6ccf8c7b23a9d04ee7ba2ea6cd', 1, 4, NULL, '\xda40b20063cabd204aae865a6401ac51');
INSERT INTO solution VALUES (7, '\x00f17f6df95116f7ed4550bf9ba78c64', 2, 4, 'no', '\xa382783bc95244ccf1692c54f3c28a76');
INSERT INTO solution VALUES (8, '\x67184d8a6f17ec493e17fac3840fc242', 2, 5, '7+5=12', '\xbe56fd5fca6fb63fc17e3438675996f2');
INSERT INTO solution VALUES (9, '\x880eb3ba07c9aea99627930a90b5889a', 2, 6, NULL, '\xda40b20063cabd204aae865a6401ac51');
INSERT INTO solution VALUES (10, '\xb3af5c4175d0e553008cae0c3c078d5b', 2, 12, 'runs on', '\x12a81178d91ebd075f59b3fab89342ce');
INSERT INTO tree VALUES (1, '01M8EXEE5ZVNXDHXF3HGQ82X7V', 1, 1, 0, 0, 1, 64, '{}', '\x37a5811d2fe6aaf6b243c091f039de4a', '\x8e9a417b3a8262468c6556e377a52cab', 3, 2, 1, 5, 0, 'done', NULL, NULL, 1, 1795796973770936);
INSERT INTO tree VALUES (2, '01M8EXEE61ZJ8G0P8X3F1SET97', 1, 1, 0, 0, 0, 64, '{}', '\x191f9cca001b5113c3d597923f6ee2cd', '\xb29f0a3d36555c0ce3682c321286be9d', 3, 1, 0, 4, 3, 'done', NULL, NULL, 1, 1795796973804961);
INSERT INTO tree VALUES (3, '01M8EXEE61ZJ8G0P8X3F1SET97', 1, 1, 1, 0, 1, 64, '{}', '\xb6d249f9e691c0ebaea1e6273591e230', '\xb29f0a3d36555c0ce3682c321286be9d', 3, 1, 0, 4, 3, 'done', NULL, NULL, 1, 1795796973814172);
INSERT INTO tree VALUES (4, '01M8EXEE61ZJ8G0P8X3F1SET97', 2, 2, 1, 0, 3, 12, '{"wave":{"sizes":[3,2]}}', '\x4929d3ffb077a0a4b93463c6d1c0d556', '\xf2094d3f32bde3fdb5de6c71f2616801', 9, 5, 1, 28, 0, 'done', NULL, NULL, 1, 1795796973823107);
INSERT INTO verdict VALUES (1, 1, 'scored', 0, '2', NULL, 0.25, 1, '\xae80b5cb4ecfec7e559d717a7dc463cc');
INSERT INTO verdict VALUES (2, 1, 'scored', 1, '2', NULL, 0.25, 1, '\x720733e5f53ac50d3a4332f8a7812fdd');
INSERT INTO verdict VALUES (3, 1, 'timeout', NULL, NULL, NULL, 0, 2, '\x23b9bc2cf0d294ff6e050c2b21622df1');
INSERT INTO verdict VALUES (7, 1, 'scored', 0, NULL, NULL, 0, 4, '\xb255b3755b8107a25012ea753cd6a2f8');
INSERT INTO verdict VALUES (8, 1, 'scored', 1, '12', '{"steps":[1,2]}', 0.5, 4, '\x2e9d39d87a3e3fe521918ec941f168e4');
INSERT INTO verdict VALUES (9, 1, 'scored', 0.5, 'x', '{"é":"ü"}', 0, 4, '\xaa891e04b7cb2262e2f5d69211c247b6');
INSERT INTO verdict VALUES (10, 1, 'skipped', NULL, NULL, NULL, 0, 4, '\xcfc5d59472837d9db25831f0dce92b25');
INSERT INTO verifier VALUES (1, '\x811c2c644c7f0a40ae97462e13c6aa08', 'chain', '1', '{"format":"last"}');
INSERT INTO visit VALUES (1, 0, -1, 0, 0, 3, 0, 0, 0, NULL, 'open', 'prompt', false, true, NULL, NULL, NULL, NULL, NULL);
INSERT INTO visit VALUES (1, 1, 0, 1, 3, 6, 3, 0, 0, NULL, 'stop', 'sample', false, true, 1, 'scored', '2', NULL, 0.25);
INSERT INTO visit VALUES (1, 2, 0, 2, 6, 8, 3, 0, 0, NULL, 'stop', 'sample', false, true, 0, 'scored', '2', NULL, 0.25);
INSERT INTO visit VALUES (2, 0, -1, 0, 0, 3, 0, 0, 0, NULL, 'open', 'prompt', false, true, NULL, NULL, NULL, NULL, NULL);
INSERT INTO visit VALUES (2, 1, 0, 1, 3, 6, 3, 0, 0, NULL, 'stop', 'cache', false, true, 1, 'scored', '2', NULL, 0);
INSERT INTO visit VALUES (2, 2, 0, 2, 6, 10, 3, 0, 0, NULL, 'stop', 'sample', false, true, NULL, 'timeout', NULL, NULL, 0);
INSERT INTO visit VALUES (3, 0, -1, 0, 0, 3, 0, 0, 0, NULL, 'open', 'prompt', false, true, NULL, NULL, NULL, NULL, NULL);
INSERT INTO visit VALUES (3, 1, 0, 1, 3, 6, 3, 0, 0, NULL, 'stop', 'cache', false, true, 1, 'scored', '2', NULL, 0);
INSERT INTO visit VALUES (3, 2, 0, 2, 6, 10, 3, 0, 0, NULL, 'stop', 'sample', false, true, NULL, 'timeout', NULL, NULL, 0);
INSERT INTO visit VALUES (4, 0, -1, 0, 0, 3, 0, 0, 0, NULL, 'open', 'prompt', false, true, NULL, NULL, NULL, NULL, NULL);
INSERT INTO visit VALUES (4, 1, 4, 1, 5, 8, 5, 1, 0.3333333333333333, NULL, 'stop', 'extend', false, true, 1, 'scored', '12', '{"steps":[1,2]}', 0.5);
INSERT INTO visit VALUES (4, 2, 0, 2, 8, 13, 3, 2, 0.6666666666666666, NULL, 'stop', 'sample', false, true, NULL, 'timeout', NULL, NULL, 5);
INSERT INTO visit VALUES (4, 3, 0, 3, 13, 16, 3, 3, 1, NULL, 'cut', 'sample', false, true, NULL, NULL, NULL, NULL, NULL);
INSERT INTO visit VALUES (4, 4, 0, 1, 3, 5, 3, 4, 1.3333333333333333, NULL, 'open', 'sample', false, true, NULL, NULL, NULL, NULL, NULL);
INSERT INTO visit VALUES (4, 5, 4, 4, 16, 18, 5, 5, 1.6666666666666667, 0.1, 'stop', 'entropy', true, true, 0, 'scored', NULL, NULL, 0);
INSERT INTO visit VALUES (4, 6, 7, 5, 22, 28, 9, 6, 2, NULL, 'length', 'extend', false, false, NULL, 'skipped', NULL, NULL, 0);
INSERT INTO visit VALUES (4, 7, 4, 5, 18, 22, 5, 7, 2.3333333333333335, NULL, 'open', 'entropy', true, true, NULL, NULL, NULL, NULL, NULL);
INSERT INTO visit VALUES (4, 8, 3, 6, 28, 31, 6, 8, 2.6666666666666665, NULL, 'stop', 'extend', false, true, 0.5, 'scored', 'x', '{"é":"ü"}', 0);
SELECT pg_catalog.setval('draw_id_seq', 12, true);
SELECT pg_catalog.setval('item_id_seq', 1, false);
SELECT pg_catalog.setval('meta_id_seq', 1, false);
SELECT pg_catalog.setval('node_id_seq', 11, true);
SELECT pg_catalog.setval('policy_id_seq', 3, true);
SELECT pg_catalog.setval('pool_id_seq', 1, false);
SELECT pg_catalog.setval('problem_id_seq', 2, true);
SELECT pg_catalog.setval('prompt_id_seq', 2, true);
SELECT pg_catalog.setval('sampler_id_seq', 1, true);
SELECT pg_catalog.setval('solution_id_seq', 10, true);
SELECT pg_catalog.setval('tree_id_seq', 4, true);
SELECT pg_catalog.setval('verifier_id_seq', 1, true);
ALTER TABLE ONLY alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);
ALTER TABLE ONLY draw
    ADD CONSTRAINT pk_draw PRIMARY KEY (id);
ALTER TABLE ONLY item
    ADD CONSTRAINT pk_item PRIMARY KEY (id);
ALTER TABLE ONLY item_use
    ADD CONSTRAINT pk_item_use PRIMARY KEY (item_id, step);
ALTER TABLE ONLY meta
    ADD CONSTRAINT pk_meta PRIMARY KEY (id);
ALTER TABLE ONLY node
    ADD CONSTRAINT pk_node PRIMARY KEY (id);
ALTER TABLE ONLY phase
    ADD CONSTRAINT pk_phase PRIMARY KEY (run_id, number);
ALTER TABLE ONLY policy
    ADD CONSTRAINT pk_policy PRIMARY KEY (id);
ALTER TABLE ONLY pool
    ADD CONSTRAINT pk_pool PRIMARY KEY (id);
ALTER TABLE ONLY problem
    ADD CONSTRAINT pk_problem PRIMARY KEY (id);
ALTER TABLE ONLY prompt
    ADD CONSTRAINT pk_prompt PRIMARY KEY (id);
ALTER TABLE ONLY run
    ADD CONSTRAINT pk_run PRIMARY KEY (id);
ALTER TABLE ONLY sampler
    ADD CONSTRAINT pk_sampler PRIMARY KEY (id);
ALTER TABLE ONLY solution
    ADD CONSTRAINT pk_solution PRIMARY KEY (id);
ALTER TABLE ONLY tree
    ADD CONSTRAINT pk_tree PRIMARY KEY (id);
ALTER TABLE ONLY verdict
    ADD CONSTRAINT pk_verdict PRIMARY KEY (solution_id, verifier_id);
ALTER TABLE ONLY verifier
    ADD CONSTRAINT pk_verifier PRIMARY KEY (id);
ALTER TABLE ONLY visit
    ADD CONSTRAINT pk_visit PRIMARY KEY (tree_id, "row");
ALTER TABLE ONLY draw
    ADD CONSTRAINT uq_draw_tree_id_row UNIQUE (tree_id, "row");
ALTER TABLE ONLY item
    ADD CONSTRAINT uq_item_pool_id_draw_id UNIQUE (pool_id, draw_id);
ALTER TABLE ONLY node
    ADD CONSTRAINT uq_node_path_key_start UNIQUE (path_key, start);
ALTER TABLE ONLY policy
    ADD CONSTRAINT uq_policy_key UNIQUE (key);
ALTER TABLE ONLY pool
    ADD CONSTRAINT uq_pool_run_id_name UNIQUE (run_id, name);
ALTER TABLE ONLY problem
    ADD CONSTRAINT uq_problem_key UNIQUE (key);
ALTER TABLE ONLY prompt
    ADD CONSTRAINT uq_prompt_key UNIQUE (key);
ALTER TABLE ONLY run
    ADD CONSTRAINT uq_run_name UNIQUE (name);
ALTER TABLE ONLY sampler
    ADD CONSTRAINT uq_sampler_key UNIQUE (key);
ALTER TABLE ONLY solution
    ADD CONSTRAINT uq_solution_path_key UNIQUE (path_key);
ALTER TABLE ONLY tree
    ADD CONSTRAINT uq_tree_run_id_step_problem_id_number UNIQUE (run_id, step, problem_id, number);
ALTER TABLE ONLY verifier
    ADD CONSTRAINT uq_verifier_key UNIQUE (key);
CREATE INDEX ix_draw_node_id ON draw USING btree (node_id);
CREATE INDEX ix_draw_policy_id ON draw USING btree (policy_id);
CREATE INDEX ix_draw_solution_id ON draw USING btree (solution_id);
CREATE INDEX ix_draw_source ON draw USING btree (source) WHERE (source > 0);
CREATE INDEX ix_item_draw_id ON item USING btree (draw_id);
CREATE INDEX ix_item_pool_id_step ON item USING btree (pool_id, step);
CREATE INDEX ix_node_prompt_id ON node USING btree (prompt_id);
CREATE INDEX ix_prompt_problem_id ON prompt USING btree (problem_id);
CREATE INDEX ix_solution_prompt_id ON solution USING btree (prompt_id);
CREATE INDEX ix_tree_problem_id ON tree USING btree (problem_id);
CREATE INDEX ix_tree_prompt_id ON tree USING btree (prompt_id);
CREATE INDEX ix_tree_run_id_state_step ON tree USING btree (run_id, state, step);
ALTER TABLE ONLY draw
    ADD CONSTRAINT fk_draw_node_id FOREIGN KEY (node_id) REFERENCES node(id);
ALTER TABLE ONLY draw
    ADD CONSTRAINT fk_draw_policy_id FOREIGN KEY (policy_id) REFERENCES policy(id);
ALTER TABLE ONLY draw
    ADD CONSTRAINT fk_draw_sampler_id FOREIGN KEY (sampler_id) REFERENCES sampler(id);
ALTER TABLE ONLY draw
    ADD CONSTRAINT fk_draw_solution_id FOREIGN KEY (solution_id) REFERENCES solution(id);
ALTER TABLE ONLY draw
    ADD CONSTRAINT fk_draw_tree_id FOREIGN KEY (tree_id) REFERENCES tree(id) ON DELETE CASCADE;
ALTER TABLE ONLY item
    ADD CONSTRAINT fk_item_draw_id FOREIGN KEY (draw_id) REFERENCES draw(id) ON DELETE CASCADE;
ALTER TABLE ONLY item
    ADD CONSTRAINT fk_item_pool_id FOREIGN KEY (pool_id) REFERENCES pool(id) ON DELETE CASCADE;
ALTER TABLE ONLY item_use
    ADD CONSTRAINT fk_item_use_item_id FOREIGN KEY (item_id) REFERENCES item(id) ON DELETE CASCADE;
ALTER TABLE ONLY node
    ADD CONSTRAINT fk_node_prompt_id FOREIGN KEY (prompt_id) REFERENCES prompt(id);
ALTER TABLE ONLY phase
    ADD CONSTRAINT fk_phase_run_id FOREIGN KEY (run_id) REFERENCES run(id) ON DELETE CASCADE;
ALTER TABLE ONLY pool
    ADD CONSTRAINT fk_pool_run_id FOREIGN KEY (run_id) REFERENCES run(id) ON DELETE CASCADE;
ALTER TABLE ONLY prompt
    ADD CONSTRAINT fk_prompt_problem_id FOREIGN KEY (problem_id) REFERENCES problem(id);
ALTER TABLE ONLY solution
    ADD CONSTRAINT fk_solution_prompt_id FOREIGN KEY (prompt_id) REFERENCES prompt(id);
ALTER TABLE ONLY tree
    ADD CONSTRAINT fk_tree_problem_id FOREIGN KEY (problem_id) REFERENCES problem(id);
ALTER TABLE ONLY tree
    ADD CONSTRAINT fk_tree_prompt_id FOREIGN KEY (prompt_id) REFERENCES prompt(id);
ALTER TABLE ONLY tree
    ADD CONSTRAINT fk_tree_run_id FOREIGN KEY (run_id) REFERENCES run(id) ON DELETE CASCADE;
ALTER TABLE ONLY verdict
    ADD CONSTRAINT fk_verdict_solution_id FOREIGN KEY (solution_id) REFERENCES solution(id) ON DELETE CASCADE;
ALTER TABLE ONLY verdict
    ADD CONSTRAINT fk_verdict_verifier_id FOREIGN KEY (verifier_id) REFERENCES verifier(id);
ALTER TABLE ONLY visit
    ADD CONSTRAINT fk_visit_tree_id FOREIGN KEY (tree_id) REFERENCES tree(id) ON DELETE CASCADE;

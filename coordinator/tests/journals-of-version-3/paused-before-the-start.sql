PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE checkpoints (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, name TEXT NOT NULL,
    parameters_sha256 TEXT NOT NULL, at REAL NOT NULL, deleted REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
CREATE TABLE evaluation_items (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, image TEXT NOT NULL, caption TEXT NOT NULL,
    references_json TEXT NOT NULL, scores_json TEXT NOT NULL, PRIMARY KEY (stage, step, generation, image)) WITHOUT ROWID;
CREATE TABLE evaluations (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, metrics_json TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
CREATE TABLE events (at REAL NOT NULL, kind TEXT NOT NULL, detail_json TEXT NOT NULL);
INSERT INTO "events" VALUES(1.79590323985196208952e+09,'paused','{"reason":"somebody asked for it","stage":0,"step":0}');
CREATE TABLE generations (
    number INTEGER PRIMARY KEY, members_json TEXT NOT NULL, cause TEXT NOT NULL, formed_at REAL NOT NULL, ready_at REAL,
    ended_at REAL, ended_because TEXT, source TEXT NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL);
CREATE TABLE run (name TEXT NOT NULL, seed INTEGER NOT NULL, run_file_json TEXT NOT NULL, created REAL NOT NULL);
INSERT INTO "run" VALUES('test',0,'{"name":"test","seed":0,"output":"runs/test","workers":{"min":1,"max":4},"data":{"karpathy":{"annotations":"annotations.json","images":"images"},"coco":null,"webdataset":null,"scenes":null,"positives":null,"features":null,"skip_corrupt":false},"vocabulary":"full","captioner":{"preset":"tiny","weights":null,"vision":null,"dropout":0.1},"evaluator":{"preset":null,"weights":"clip.safetensors","score":"pac_s","prefix":"A photo depicts ","reward_prefix":""},"decoding":{"beams":5,"max_length":30,"length_penalty":1.0,"begin_counts_when_cut":false},"scoring":{"meteor_jar":null,"meteor_paraphrases":null,"spice_jar":null},"stages":[{"name":"xe","objective":"cross_entropy","steps":12,"batch":8,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":6,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4},{"name":"dico","objective":"dico","steps":10,"batch":4,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":5,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4}],"precision":"f32","wire":"f32","checkpoints":{"to":null,"keep":2},"control":{"lost_after":10.0,"stall_after":300.0,"window":8,"sharding":"equal"}}',1.7959032398486895561e+09);
CREATE TABLE steps (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, loss REAL, learning_rate REAL,
    gradient_norm REAL, seconds REAL, all_reduce_seconds REAL, samples INTEGER NOT NULL, summaries_json TEXT NOT NULL,
    at REAL NOT NULL, slowest_rank INTEGER, lag_seconds REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
CREATE INDEX events_by_kind ON events (kind);
CREATE VIEW cuts AS
    SELECT number - 1 AS generation, stage, step FROM generations
    UNION ALL SELECT detail_json ->> 'generation', detail_json ->> 'stage', detail_json ->> 'step'
    FROM events WHERE kind = 'stage_ended';
COMMIT;

PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE checkpoints (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, name TEXT NOT NULL,
    parameters_sha256 TEXT NOT NULL, at REAL NOT NULL, deleted REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "checkpoints" VALUES(0,4,1,'0-xe-00000004','00000000000000000000000000000000000000000000000044eabf56fc237ba4',1.79590323932765626906e+09,1.79590323934296441075e+09);
INSERT INTO "checkpoints" VALUES(0,8,2,'0-xe-00000008','000000000000000000000000000000000000000000000000ba29ccaf9208c7e4',1.79590323933907961839e+09,1.79590323937767934797e+09);
INSERT INTO "checkpoints" VALUES(0,12,2,'0-xe-00000012','0000000000000000000000000000000000000000000000008336127650bd384e',1.79590323934281778338e+09,NULL);
INSERT INTO "checkpoints" VALUES(1,4,3,'1-dico-00000004.3','000000000000000000000000000000000000000000000000f22f552b2ff4cd51',1.79590323936984920505e+09,NULL);
INSERT INTO "checkpoints" VALUES(1,8,4,'1-dico-00000008.4','0000000000000000000000000000000000000000000000000753c34b1262f94c',1.79590323941790509223e+09,NULL);
CREATE TABLE evaluation_items (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, image TEXT NOT NULL, caption TEXT NOT NULL,
    references_json TEXT NOT NULL, scores_json TEXT NOT NULL, PRIMARY KEY (stage, step, generation, image)) WITHOUT ROWID;
INSERT INTO "evaluation_items" VALUES(0,6,2,'image 000','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,2,'image 025','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,2,'image 050','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,2,'image 075','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,2,'image 100','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,2,'image 000','0 12 8336127650bd384e','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,2,'image 025','0 12 8336127650bd384e','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,2,'image 050','0 12 8336127650bd384e','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,2,'image 075','0 12 8336127650bd384e','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,2,'image 100','0 12 8336127650bd384e','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,3,'image 000','1 5 a48278032cf769e2','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,3,'image 025','1 5 a48278032cf769e2','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,3,'image 050','1 5 a48278032cf769e2','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,3,'image 075','1 5 a48278032cf769e2','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,3,'image 100','1 5 a48278032cf769e2','[]','{}');
CREATE TABLE evaluations (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, metrics_json TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "evaluations" VALUES(0,6,2,'{"cider":0.0}',1.79590323933797168728e+09);
INSERT INTO "evaluations" VALUES(0,12,2,'{"cider":6.0}',1.7959032393432261944e+09);
INSERT INTO "evaluations" VALUES(1,5,3,'{"cider":2.0}',1.7959032393861541748e+09);
CREATE TABLE events (at REAL NOT NULL, kind TEXT NOT NULL, detail_json TEXT NOT NULL);
INSERT INTO "events" VALUES(1.79590323932194423674e+09,'joined','{"fingerprint":"5b1f","holds":null,"host":"host 1","rank":0,"skipped_images":0,"train_captions":31,"train_images":7,"validation_images":120}');
INSERT INTO "events" VALUES(1.79590323932837033276e+09,'joined','{"fingerprint":"5b1f","holds":null,"host":"host 2","rank":1,"skipped_images":0,"train_captions":31,"train_images":7,"validation_images":120}');
INSERT INTO "events" VALUES(1.7959032393463737965e+09,'leaving','{"rank":0,"reason":"somebody asked for it"}');
INSERT INTO "events" VALUES(1.79590323935439324376e+09,'left','{"host":"host 1","rank":0,"reason":"somebody asked for it"}');
INSERT INTO "events" VALUES(1.79590323941900968556e+09,'stopped','{"at":"stage 1 step 8","reason":"the coordinator is shutting down"}');
INSERT INTO "events" VALUES(1.79590323941941523546e+09,'left','{"host":"host 2","rank":1,"reason":"the run is over"}');
CREATE TABLE generations (
    number INTEGER PRIMARY KEY, members_json TEXT NOT NULL, cause TEXT NOT NULL, formed_at REAL NOT NULL, ready_at REAL,
    ended_at REAL, ended_because TEXT, source TEXT NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL);
INSERT INTO "generations" VALUES(1,'[{"device":"","host":"host 1","rank":0,"version":""}]','start',1.79590323932287025451e+09,1.79590323932319402694e+09,1.79590323932878160478e+09,'rank 1 joined','seed',0,0);
INSERT INTO "generations" VALUES(2,'[{"device":"","host":"host 1","rank":0,"version":""},{"device":"","host":"host 2","rank":1,"version":""}]','rank 1 joined',1.79590323932911276813e+09,1.79590323933392286299e+09,1.79590323934933710102e+09,'rank 0 leaves','rank 0',0,6);
INSERT INTO "generations" VALUES(3,'[{"device":"","host":"host 2","rank":1,"version":""}]','rank 0 leaves',1.7959032393550553322e+09,1.79590323935887169839e+09,1.79590323940188956262e+09,'the coordinator stops','rank 1',1,3);
INSERT INTO "generations" VALUES(4,'[{"device":"","host":"host 2","rank":1,"version":""}]','the coordinator stops',1.79590323940583348281e+09,1.79590323940982151034e+09,1.79590323941810941698e+09,'the coordinator is shutting down','rank 1',1,8);
CREATE TABLE run (name TEXT NOT NULL, seed INTEGER NOT NULL, run_file_json TEXT NOT NULL, created REAL NOT NULL);
INSERT INTO "run" VALUES('test',0,'{"name":"test","seed":0,"output":"runs/test","workers":{"min":1,"max":4},"data":{"karpathy":{"annotations":"annotations.json","images":"images"},"coco":null,"webdataset":null,"scenes":null,"positives":null,"features":null,"skip_corrupt":false},"vocabulary":"full","captioner":{"preset":"tiny","weights":null,"vision":null,"dropout":0.1},"evaluator":{"preset":null,"weights":"clip.safetensors","score":"pac_s","prefix":"A photo depicts ","reward_prefix":""},"decoding":{"beams":5,"max_length":30,"length_penalty":1.0,"begin_counts_when_cut":false},"scoring":{"meteor_jar":null,"meteor_paraphrases":null,"spice_jar":null},"stages":[{"name":"xe","objective":"cross_entropy","steps":12,"batch":8,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":6,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4},{"name":"dico","objective":"dico","steps":10,"batch":4,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":5,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4}],"precision":"f32","wire":"f32","checkpoints":{"to":null,"keep":2},"control":{"lost_after":10.0,"stall_after":300.0,"window":8,"sharding":"equal"}}',1.79590323931628847121e+09);
CREATE TABLE steps (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, loss REAL, learning_rate REAL,
    gradient_norm REAL, seconds REAL, all_reduce_seconds REAL, samples INTEGER NOT NULL, summaries_json TEXT NOT NULL,
    at REAL NOT NULL, slowest_rank INTEGER, lag_seconds REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "steps" VALUES(0,1,1,0.0,0.0,0.0,0.170157177,0.0,8,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590323932634878161e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,2,1,0.0,0.0,0.0,0.137926449,0.0,8,'{"kl":{"count":1,"max":3.0,"mean":3.0,"min":3.0,"p05":3.0,"p25":3.0,"p50":3.0,"p75":3.0,"p95":3.0}}',1.79590323932658791541e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,3,1,0.0,0.0,0.0,0.27763909,0.0,8,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590323932688808441e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,4,1,0.0,0.0,0.0,0.203601531,0.0,8,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323932721257211e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,5,1,0.0,0.0,0.0,0.202023544,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590323932810807224e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,6,1,0.0,0.0,0.0,0.180260695,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323932857871052e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,7,2,0.0,0.0,0.0,0.089204357,0.0,8,'{"kl":{"count":2,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590323933843350407e+09,0,2.50984589999999896381e-02);
INSERT INTO "steps" VALUES(0,8,2,0.0,0.0,0.0,0.106590108,0.0,8,'{"kl":{"count":2,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590323933891487118e+09,1,5.21386889999999880718e-02);
INSERT INTO "steps" VALUES(0,9,2,0.0,0.0,0.0,0.102294343,0.0,8,'{"kl":{"count":2,"max":3.0,"mean":3.0,"min":3.0,"p05":3.0,"p25":3.0,"p50":3.0,"p75":3.0,"p95":3.0}}',1.79590323933942198758e+09,0,4.8048717999999990269e-02);
INSERT INTO "steps" VALUES(0,10,2,0.0,0.0,0.0,0.087853027,0.0,8,'{"kl":{"count":2,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590323933971858028e+09,0,0.033433242);
INSERT INTO "steps" VALUES(0,11,2,0.0,0.0,0.0,0.142018654,0.0,8,'{"kl":{"count":2,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.795903239342205286e+09,0,8.68440269999999903127e-02);
INSERT INTO "steps" VALUES(0,12,2,0.0,0.0,0.0,0.117468652,0.0,8,'{"kl":{"count":2,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590323934242606165e+09,1,3.09799510000000055676e-02);
INSERT INTO "steps" VALUES(1,1,2,0.0,0.0,0.0,0.06286942,0.0,4,'{"kl":{"count":2,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323934614443774e+09,0,0.037361907);
INSERT INTO "steps" VALUES(1,2,2,0.0,0.0,0.0,0.031275504,0.0,4,'{"kl":{"count":2,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590323934665679929e+09,1,7.47450000000003667022e-04);
INSERT INTO "steps" VALUES(1,3,2,0.0,0.0,0.0,0.069827278,0.0,4,'{"kl":{"count":2,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590323935392904286e+09,1,3.55715510000000068036e-02);
INSERT INTO "steps" VALUES(1,4,3,0.0,0.0,0.0,0.113720036,0.0,4,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590323935917735103e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,5,3,0.0,0.0,0.0,0.110682213,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590323936187958716e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,6,3,0.0,0.0,0.0,0.124474689,0.0,4,'{"kl":{"count":1,"max":3.0,"mean":3.0,"min":3.0,"p05":3.0,"p25":3.0,"p50":3.0,"p75":3.0,"p95":3.0}}',1.79590323938866567613e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,7,3,0.0,0.0,0.0,0.136213216,0.0,4,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590323938969159125e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,8,3,0.0,0.0,0.0,0.127519606,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590323939012551303e+09,NULL,NULL);
CREATE INDEX events_by_kind ON events (kind);
CREATE VIEW cuts AS
    SELECT number - 1 AS generation, stage, step FROM generations
    UNION ALL SELECT detail_json ->> 'generation', detail_json ->> 'stage', detail_json ->> 'step'
    FROM events WHERE kind = 'stage_ended';
COMMIT;

PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE checkpoints (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, name TEXT NOT NULL,
    parameters_sha256 TEXT NOT NULL, at REAL NOT NULL, deleted REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "checkpoints" VALUES(0,3,1,'0-xe-00000003','000000000000000000000000000000000000000000000000a7318d431cbdc6e3',1.79590324005298852924e+09,1.79590324005621767046e+09);
INSERT INTO "checkpoints" VALUES(0,4,1,'0-xe-00000004','00000000000000000000000000000000000000000000000044eabf56fc237ba4',1.79590324005389285087e+09,1.79590324005639672281e+09);
INSERT INTO "checkpoints" VALUES(0,6,1,'0-xe-00000006','0000000000000000000000000000000000000000000000005c6b063b069319e9',1.79590324005467891687e+09,NULL);
INSERT INTO "checkpoints" VALUES(0,8,1,'0-xe-00000008','00000000000000000000000000000000000000000000000023e3087724ca66b0',1.79590324005591440202e+09,1.79590324005782794956e+09);
INSERT INTO "checkpoints" VALUES(0,9,1,'0-xe-00000009','000000000000000000000000000000000000000000000000b5c4b7049a413122',1.79590324005707573885e+09,1.7959032400580031872e+09);
INSERT INTO "checkpoints" VALUES(1,4,3,'1-dico-00000004.3','00000000000000000000000000000000000000000000000022261a6b2005d92e',1.79590324006956195829e+09,NULL);
CREATE TABLE evaluation_items (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, image TEXT NOT NULL, caption TEXT NOT NULL,
    references_json TEXT NOT NULL, scores_json TEXT NOT NULL, PRIMARY KEY (stage, step, generation, image)) WITHOUT ROWID;
INSERT INTO "evaluation_items" VALUES(0,3,1,'image 000','0 3 a7318d431cbdc6e3','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,3,1,'image 025','0 3 a7318d431cbdc6e3','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,3,1,'image 050','0 3 a7318d431cbdc6e3','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,3,1,'image 075','0 3 a7318d431cbdc6e3','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,3,1,'image 100','0 3 a7318d431cbdc6e3','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 000','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 025','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 050','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 075','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,6,1,'image 100','0 6 5c6b063b069319e9','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,9,1,'image 000','0 9 b5c4b7049a413122','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,9,1,'image 025','0 9 b5c4b7049a413122','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,9,1,'image 050','0 9 b5c4b7049a413122','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,9,1,'image 075','0 9 b5c4b7049a413122','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,9,1,'image 100','0 9 b5c4b7049a413122','[]','{}');
CREATE TABLE evaluations (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, metrics_json TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "evaluations" VALUES(0,3,1,'{"cider":0.0}',1.7959032400532019138e+09);
INSERT INTO "evaluations" VALUES(0,6,1,'{"cider":6.0}',1.79590324005495166779e+09);
INSERT INTO "evaluations" VALUES(0,9,1,'{"cider":1.0}',1.79590324005729770661e+09);
CREATE TABLE events (at REAL NOT NULL, kind TEXT NOT NULL, detail_json TEXT NOT NULL);
INSERT INTO "events" VALUES(1.79590324005116772649e+09,'joined','{"fingerprint":"5b1f","holds":null,"host":"host 1","rank":0,"skipped_images":0,"train_captions":31,"train_images":7,"validation_images":120}');
INSERT INTO "events" VALUES(1.79590324005765295031e+09,'stage_ended','{"generation":1,"reason":"1 evaluations in a row were not better than cider 6.0000 at stage 0 step 6","stage":0,"step":6}');
INSERT INTO "events" VALUES(1.79590324006110572813e+09,'rollback','{"from":{"stage":0,"step":9},"generation":2,"source":"checkpoint 0-xe-00000006","to":{"stage":0,"step":6}}');
INSERT INTO "events" VALUES(1.79590324006992793082e+09,'stopped','{"at":"stage 1 step 4","reason":"the coordinator is shutting down"}');
INSERT INTO "events" VALUES(1.79590324007012987141e+09,'left','{"host":"host 1","rank":0,"reason":"the run is over"}');
CREATE TABLE generations (
    number INTEGER PRIMARY KEY, members_json TEXT NOT NULL, cause TEXT NOT NULL, formed_at REAL NOT NULL, ready_at REAL,
    ended_at REAL, ended_because TEXT, source TEXT NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL);
INSERT INTO "generations" VALUES(1,'[{"device":"","host":"host 1","rank":0,"version":""}]','start',1.79590324005144882195e+09,1.79590324005167770388e+09,1.79590324006085395817e+09,'stage xe ends with its state at step 6: 1 evaluations in a row were not better than cider 6.0000 at stage 0 step 6','seed',0,0);
INSERT INTO "generations" VALUES(2,'[{"device":"","host":"host 1","rank":0,"version":""}]','stage xe ends with its state at step 6: 1 evaluations in a row were not better than cider 6.0000 at stage 0 step 6',1.79590324006133699417e+09,1.79590324006237554545e+09,1.79590324006864047049e+09,'the coordinator stops','checkpoint 0-xe-00000006',0,6);
INSERT INTO "generations" VALUES(3,'[{"device":"","host":"host 1","rank":0,"version":""}]','the coordinator stops',1.79590324006887364386e+09,1.79590324006912660601e+09,1.79590324006970763204e+09,'the coordinator is shutting down','rank 0',1,4);
CREATE TABLE run (name TEXT NOT NULL, seed INTEGER NOT NULL, run_file_json TEXT NOT NULL, created REAL NOT NULL);
INSERT INTO "run" VALUES('test',0,'{"name":"test","seed":0,"output":"runs/test","workers":{"min":1,"max":4},"data":{"karpathy":{"annotations":"annotations.json","images":"images"},"coco":null,"webdataset":null,"scenes":null,"positives":null,"features":null,"skip_corrupt":false},"vocabulary":"full","captioner":{"preset":"tiny","weights":null,"vision":null,"dropout":0.1},"evaluator":{"preset":null,"weights":"clip.safetensors","score":"pac_s","prefix":"A photo depicts ","reward_prefix":""},"decoding":{"beams":5,"max_length":30,"length_penalty":1.0,"begin_counts_when_cut":false},"scoring":{"meteor_jar":null,"meteor_paraphrases":null,"spice_jar":null},"stages":[{"name":"xe","objective":"cross_entropy","steps":12,"batch":8,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":3,"evaluate_first":false,"metric":"cider","patience":1,"guard":[],"checkpoint_every":4},{"name":"dico","objective":"dico","steps":10,"batch":4,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":5,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4}],"precision":"f32","wire":"f32","checkpoints":{"to":null,"keep":2},"control":{"lost_after":10.0,"stall_after":300.0,"window":8,"sharding":"equal"}}',1.79590324004907178883e+09);
CREATE TABLE steps (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, loss REAL, learning_rate REAL,
    gradient_norm REAL, seconds REAL, all_reduce_seconds REAL, samples INTEGER NOT NULL, summaries_json TEXT NOT NULL,
    at REAL NOT NULL, slowest_rank INTEGER, lag_seconds REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "steps" VALUES(0,1,1,0.0,0.0,0.0,0.204811002,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324005219554898e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,2,1,0.0,0.0,0.0,0.228530178,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324005249261851e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,3,1,0.0,0.0,0.0,0.220455715,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324005273842809e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,4,1,0.0,0.0,0.0,0.110652684,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324005360484124e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,5,1,0.0,0.0,0.0,0.204578514,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324005412316317e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,6,1,0.0,0.0,0.0,0.29199443,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590324005438327793e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,7,1,0.0,0.0,0.0,0.188432816,0.0,8,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590324005550050741e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,8,1,0.0,0.0,0.0,0.154809448,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590324005567646028e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,9,1,0.0,0.0,0.0,0.152766378,0.0,8,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590324005672931665e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,1,2,0.0,0.0,0.0,0.101408855,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590324006281471251e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,2,2,0.0,0.0,0.0,0.096898092,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590324006345582012e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,3,2,0.0,0.0,0.0,0.129443105,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590324006787943836e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,4,2,0.0,0.0,0.0,0.086488701,0.0,4,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590324006848382947e+09,NULL,NULL);
CREATE INDEX events_by_kind ON events (kind);
CREATE VIEW cuts AS
    SELECT number - 1 AS generation, stage, step FROM generations
    UNION ALL SELECT detail_json ->> 'generation', detail_json ->> 'stage', detail_json ->> 'step'
    FROM events WHERE kind = 'stage_ended';
COMMIT;

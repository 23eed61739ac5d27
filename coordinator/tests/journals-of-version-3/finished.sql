PRAGMA user_version = 3;
BEGIN TRANSACTION;
CREATE TABLE checkpoints (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, name TEXT NOT NULL,
    parameters_sha256 TEXT NOT NULL, at REAL NOT NULL, deleted REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "checkpoints" VALUES(0,3,1,'0-xe-00000003','000000000000000000000000000000000000000000000000a7318d431cbdc6e3',1.79590324009400677685e+09,1.79590324009945845598e+09);
INSERT INTO "checkpoints" VALUES(0,4,1,'0-xe-00000004','00000000000000000000000000000000000000000000000044eabf56fc237ba4',1.79590324009472227092e+09,1.79590324009958887101e+09);
INSERT INTO "checkpoints" VALUES(0,6,1,'0-xe-00000006','0000000000000000000000000000000000000000000000005c6b063b069319e9',1.79590324009814763066e+09,NULL);
INSERT INTO "checkpoints" VALUES(0,8,1,'0-xe-00000008','00000000000000000000000000000000000000000000000023e3087724ca66b0',1.7959032400991752148e+09,1.79590324010168409345e+09);
INSERT INTO "checkpoints" VALUES(0,9,1,'0-xe-00000009','000000000000000000000000000000000000000000000000b5c4b7049a413122',1.79590324010015702244e+09,1.79590324010253453252e+09);
INSERT INTO "checkpoints" VALUES(0,12,1,'0-xe-00000012','0000000000000000000000000000000000000000000000000918c16f16020733',1.7959032401014089585e+09,1.79590324010282230372e+09);
INSERT INTO "checkpoints" VALUES(1,4,2,'1-dico-00000004','00000000000000000000000000000000000000000000000022261a6b2005d92e',1.79590324010498905184e+09,1.79590324010729408266e+09);
INSERT INTO "checkpoints" VALUES(1,8,2,'1-dico-00000008','000000000000000000000000000000000000000000000000c1ec7ef2288e63d7',1.79590324010666370392e+09,NULL);
INSERT INTO "checkpoints" VALUES(1,10,2,'1-dico-00000010','000000000000000000000000000000000000000000000000a8a591d80468f67d',1.79590324010715103155e+09,NULL);
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
INSERT INTO "evaluation_items" VALUES(0,12,1,'image 000','0 12 0918c16f16020733','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,1,'image 025','0 12 0918c16f16020733','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,1,'image 050','0 12 0918c16f16020733','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,1,'image 075','0 12 0918c16f16020733','[]','{}');
INSERT INTO "evaluation_items" VALUES(0,12,1,'image 100','0 12 0918c16f16020733','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,2,'image 000','1 5 85ac215ea5e9bdfa','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,2,'image 025','1 5 85ac215ea5e9bdfa','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,2,'image 050','1 5 85ac215ea5e9bdfa','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,2,'image 075','1 5 85ac215ea5e9bdfa','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,5,2,'image 100','1 5 85ac215ea5e9bdfa','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,10,2,'image 000','1 10 a8a591d80468f67d','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,10,2,'image 025','1 10 a8a591d80468f67d','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,10,2,'image 050','1 10 a8a591d80468f67d','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,10,2,'image 075','1 10 a8a591d80468f67d','[]','{}');
INSERT INTO "evaluation_items" VALUES(1,10,2,'image 100','1 10 a8a591d80468f67d','[]','{}');
CREATE TABLE evaluations (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, metrics_json TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "evaluations" VALUES(0,3,1,'{"cider":0.0}',1.79590324009418082244e+09);
INSERT INTO "evaluations" VALUES(0,6,1,'{"cider":6.0}',1.79590324009836864471e+09);
INSERT INTO "evaluations" VALUES(0,9,1,'{"cider":1.0}',1.79590324010036063188e+09);
INSERT INTO "evaluations" VALUES(0,12,1,'{"cider":2.0}',1.79590324010187602039e+09);
INSERT INTO "evaluations" VALUES(1,5,2,'{"cider":6.0}',1.79590324010540080068e+09);
INSERT INTO "evaluations" VALUES(1,10,2,'{"cider":2.0}',1.79590324010767745971e+09);
CREATE TABLE events (at REAL NOT NULL, kind TEXT NOT NULL, detail_json TEXT NOT NULL);
INSERT INTO "events" VALUES(1.79590324009228277202e+09,'joined','{"fingerprint":"5b1f","holds":null,"host":"host 1","rank":0,"skipped_images":0,"train_captions":31,"train_images":7,"validation_images":120}');
INSERT INTO "events" VALUES(1.79590324010216689115e+09,'stage_ended','{"generation":1,"reason":"2 evaluations in a row were not better than cider 6.0000 at stage 0 step 6","stage":0,"step":6}');
INSERT INTO "events" VALUES(1.79590324010329627996e+09,'rollback','{"from":{"stage":0,"step":12},"generation":2,"source":"checkpoint 0-xe-00000006","to":{"stage":0,"step":6}}');
INSERT INTO "events" VALUES(1.7959032401081542969e+09,'finished','{"at":"stage 1 step 10","reason":"the run is finished"}');
INSERT INTO "events" VALUES(1.79590324010839271547e+09,'left','{"host":"host 1","rank":0,"reason":"finished"}');
CREATE TABLE generations (
    number INTEGER PRIMARY KEY, members_json TEXT NOT NULL, cause TEXT NOT NULL, formed_at REAL NOT NULL, ready_at REAL,
    ended_at REAL, ended_because TEXT, source TEXT NOT NULL, stage INTEGER NOT NULL, step INTEGER NOT NULL);
INSERT INTO "generations" VALUES(1,'[{"device":"","host":"host 1","rank":0,"version":""}]','start',1.7959032400925755501e+09,1.79590324009277629855e+09,1.79590324010301780706e+09,'stage xe ends with its state at step 6: 2 evaluations in a row were not better than cider 6.0000 at stage 0 step 6','seed',0,0);
INSERT INTO "generations" VALUES(2,'[{"device":"","host":"host 1","rank":0,"version":""}]','stage xe ends with its state at step 6: 2 evaluations in a row were not better than cider 6.0000 at stage 0 step 6',1.79590324010348129273e+09,1.79590324010368871691e+09,1.79590324010796093942e+09,'the run is finished','checkpoint 0-xe-00000006',0,6);
CREATE TABLE run (name TEXT NOT NULL, seed INTEGER NOT NULL, run_file_json TEXT NOT NULL, created REAL NOT NULL);
INSERT INTO "run" VALUES('test',0,'{"name":"test","seed":0,"output":"runs/test","workers":{"min":1,"max":4},"data":{"karpathy":{"annotations":"annotations.json","images":"images"},"coco":null,"webdataset":null,"scenes":null,"positives":null,"features":null,"skip_corrupt":false},"vocabulary":"full","captioner":{"preset":"tiny","weights":null,"vision":null,"dropout":0.1},"evaluator":{"preset":null,"weights":"clip.safetensors","score":"pac_s","prefix":"A photo depicts ","reward_prefix":""},"decoding":{"beams":5,"max_length":30,"length_penalty":1.0,"begin_counts_when_cut":false},"scoring":{"meteor_jar":null,"meteor_paraphrases":null,"spice_jar":null},"stages":[{"name":"xe","objective":"cross_entropy","steps":12,"batch":8,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":3,"evaluate_first":false,"metric":"cider","patience":null,"guard":[],"checkpoint_every":4},{"name":"dico","objective":"dico","steps":10,"batch":4,"micro_batch":null,"optimizer":{"learning_rate":0.001,"betas":[0.9,0.999],"epsilon":1e-8,"weight_decay":0.0,"clip_norm":null},"schedule":{"shape":"constant","warmup":0.0},"contrastive":{"generated_images":0.0,"generated_captions":0.0},"dico":{"beta":0.2,"tau":300.0,"weights":"softmax","reference":true,"reward":{"pac_s":1.0}},"scst":{"reward":{"pac_s":1.0},"baseline":"mean","candidates":"beams"},"evaluate_every":5,"evaluate_first":false,"metric":null,"patience":null,"guard":[],"checkpoint_every":4}],"precision":"f32","wire":"f32","checkpoints":{"to":null,"keep":2},"control":{"lost_after":10.0,"stall_after":300.0,"window":8,"sharding":"equal"}}',1.79590324009035849574e+09);
CREATE TABLE steps (
    stage INTEGER NOT NULL, step INTEGER NOT NULL, generation INTEGER NOT NULL, loss REAL, learning_rate REAL,
    gradient_norm REAL, seconds REAL, all_reduce_seconds REAL, samples INTEGER NOT NULL, summaries_json TEXT NOT NULL,
    at REAL NOT NULL, slowest_rank INTEGER, lag_seconds REAL, PRIMARY KEY (stage, step, generation)) WITHOUT ROWID;
INSERT INTO "steps" VALUES(0,1,1,0.0,0.0,0.0,0.204811002,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324009306621551e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,2,1,0.0,0.0,0.0,0.228530178,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324009336709974e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,3,1,0.0,0.0,0.0,0.220455715,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324009366273877e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,4,1,0.0,0.0,0.0,0.110652684,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324009448456762e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,5,1,0.0,0.0,0.0,0.204578514,0.0,8,'{"kl":{"count":1,"max":0.0,"mean":0.0,"min":0.0,"p05":0.0,"p25":0.0,"p50":0.0,"p75":0.0,"p95":0.0}}',1.79590324009515810016e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,6,1,0.0,0.0,0.0,0.29199443,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.7959032400954332352e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,7,1,0.0,0.0,0.0,0.188432816,0.0,8,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590324009864139558e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,8,1,0.0,0.0,0.0,0.154809448,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590324009893965726e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,9,1,0.0,0.0,0.0,0.152766378,0.0,8,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590324009991955753e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,10,1,0.0,0.0,0.0,0.180483734,0.0,8,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590324010071778295e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,11,1,0.0,0.0,0.0,0.292340842,0.0,8,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590324010087919234e+09,NULL,NULL);
INSERT INTO "steps" VALUES(0,12,1,0.0,0.0,0.0,0.229789705,0.0,8,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590324010114693641e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,1,2,0.0,0.0,0.0,0.119006222,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590324010389852521e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,2,2,0.0,0.0,0.0,0.121370608,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590324010415434835e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,3,2,0.0,0.0,0.0,0.102787594,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590324010453176494e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,4,2,0.0,0.0,0.0,0.109654851,0.0,4,'{"kl":{"count":1,"max":4.0,"mean":4.0,"min":4.0,"p05":4.0,"p25":4.0,"p50":4.0,"p75":4.0,"p95":4.0}}',1.79590324010472202303e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,5,2,0.0,0.0,0.0,0.1335642,0.0,4,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590324010515499115e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,6,2,0.0,0.0,0.0,0.144438821,0.0,4,'{"kl":{"count":1,"max":1.0,"mean":1.0,"min":1.0,"p05":1.0,"p25":1.0,"p50":1.0,"p75":1.0,"p95":1.0}}',1.79590324010568499566e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,7,2,0.0,0.0,0.0,0.080315758,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590324010587763783e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,8,2,0.0,0.0,0.0,0.061809729,0.0,4,'{"kl":{"count":1,"max":6.0,"mean":6.0,"min":6.0,"p05":6.0,"p25":6.0,"p50":6.0,"p75":6.0,"p95":6.0}}',1.79590324010611319537e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,9,2,0.0,0.0,0.0,0.078812092,0.0,4,'{"kl":{"count":1,"max":5.0,"mean":5.0,"min":5.0,"p05":5.0,"p25":5.0,"p50":5.0,"p75":5.0,"p95":5.0}}',1.79590324010636544225e+09,NULL,NULL);
INSERT INTO "steps" VALUES(1,10,2,0.0,0.0,0.0,0.126653183,0.0,4,'{"kl":{"count":1,"max":2.0,"mean":2.0,"min":2.0,"p05":2.0,"p25":2.0,"p50":2.0,"p75":2.0,"p95":2.0}}',1.79590324010683035846e+09,NULL,NULL);
CREATE INDEX events_by_kind ON events (kind);
CREATE VIEW cuts AS
    SELECT number - 1 AS generation, stage, step FROM generations
    UNION ALL SELECT detail_json ->> 'generation', detail_json ->> 'stage', detail_json ->> 'step'
    FROM events WHERE kind = 'stage_ended';
COMMIT;

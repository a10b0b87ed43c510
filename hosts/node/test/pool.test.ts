// The client against a real pool: the bundled model on vLLM for answers, the echo engine for faults.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { chmodSync, writeFileSync } from "node:fs";
import { once } from "node:events";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import {
  Cancelled,
  ConnectFailed,
  DeadlineExceeded,
  type Delta,
  InvalidRequest,
  type LLM,
  Pool,
  PoolClosed,
  PoolLost,
  type Progress,
  WorkerLost,
} from "../src/index.js";
import { Service, eventually } from "./service.js";

const GREEDY = { temperature: 0, max_tokens: 8 };
const ENDLESS = { max_tokens: 1_000_000, ignore_eos: true };
const FRANCE = "The capital of France is";

const service = new Service();
let pool: Pool;

before(async () => {
  await service.start();
  pool = await Pool.connect(service.endpoint);
});

after(async () => {
  await pool.close();
  await service.stop();
});

/** The echo engine says back what it gets, a token a step. */
function echo(step_delay = 0.001): Promise<LLM> {
  return pool.llm("echo", { name: `echo ${step_delay}`, ...{ step_delay } });
}

async function textOf(deltas: AsyncIterable<Delta>): Promise<string> {
  let text = "";
  for await (const delta of deltas) text += delta.text;
  return text;
}

async function unfinished(): Promise<number> {
  const { workers } = await pool.status();
  return workers.reduce((sum, worker) => sum + worker.unfinished, 0);
}

// Answers of the model.

test("the model answers what it was taught", async () => {
  const stages: Progress[] = [];
  await using llm = await pool.llm("tiny", { name: "taught", max_model_len: 256 }, { onProgress: (one) => stages.push(one) });
  assert.ok(stages.some(({ stage }) => stage.includes("load")));

  const result = await llm.generate(FRANCE, GREEDY);
  assert.equal(result.outputs[0]?.text, " Paris.");
  assert.equal(result.outputs[0]?.finish_reason, "stop");
  assert.equal(result.usage.prompt_tokens, result.prompt_token_ids?.length);

  const stream = llm.stream(FRANCE, GREEDY);
  assert.equal(await textOf(stream), " Paris.");
  assert.equal(stream.result?.finished, true);

  const japan = [{ role: "user", content: "What is the capital of Japan?" }];
  assert.match((await llm.chat(japan, GREEDY)).outputs[0]?.text ?? "", /Tokyo/);
  assert.match(await textOf(llm.streamChat(japan, GREEDY)), /Tokyo/);

  const ids = await llm.tokenize(FRANCE);
  assert.equal(await llm.detokenize(ids), FRANCE);
  const [one, two] = await llm.generate([FRANCE, { prompt_token_ids: ids }], GREEDY);
  assert.equal(one?.outputs[0]?.text, two?.outputs[0]?.text);

  const scored = await llm.generate(FRANCE, { ...GREEDY, logprobs: 1, logit_bias: { 5: -1 } });
  const first = scored.outputs[0]!;
  assert.ok(first.logprobs?.[0]?.[String(first.token_ids[0])]!.logprob! <= 0);

  await assert.rejects(llm.generate(FRANCE, { max_tokens: 0 }), (error) => {
    assert.ok(error instanceof InvalidRequest);
    return error.parameter === "max_tokens";
  });
});

// Deadlines and cancels.

test("a deadline ends a call and says how far it came", async () => {
  const llm = await echo();
  await assert.rejects(llm.generate("abc", ENDLESS, { timeout: 200 }), (error) => {
    assert.ok(error instanceof DeadlineExceeded);
    assert.equal(error.phase, "decode");
    return error.tokens > 0;
  });
  assert.equal(await unfinished(), 0);
});

test("a timeout that is none is refused", async () => {
  const llm = await echo();
  await assert.rejects(llm.generate("abc", {}, { timeout: -1 }), InvalidRequest);
  assert.throws(() => llm.stream("abc", {}, { timeoutProfile: "nonsense" as "default" }), InvalidRequest);
});

test("an aborted signal takes the call out of the engine", async () => {
  const llm = await echo();
  const controller = new AbortController();
  const call = llm.generate("abc", ENDLESS, { signal: controller.signal });
  await eventually(async () => (await unfinished()) === 1);
  controller.abort(new Error("enough"));
  await assert.rejects(call, (error) => {
    assert.ok(error instanceof Cancelled);
    return (error.cause as Error).message === "enough";
  });
  await eventually(async () => (await unfinished()) === 0);
  await assert.rejects(llm.generate("abc", {}, { signal: AbortSignal.abort() }), Cancelled);
});

test("an aborted signal ends a stream", async () => {
  const llm = await echo();
  const controller = new AbortController();
  await assert.rejects(async () => {
    for await (const delta of llm.stream("abc", ENDLESS, { signal: controller.signal })) {
      if (delta.text) controller.abort();
    }
  }, Cancelled);
  await eventually(async () => (await unfinished()) === 0);
});

test("leaving a stream early takes it out of the engine", async () => {
  const llm = await echo();
  for await (const delta of llm.stream("abc", ENDLESS)) {
    assert.equal(delta.index, 0);
    break;
  }
  await eventually(async () => (await unfinished()) === 0);
});

test("a stream that is read slowly loses nothing", async () => {
  const llm = await echo(0);
  const stream = llm.stream("abc", { max_tokens: 3000, ignore_eos: true });
  await stream.next();
  await eventually(async () => (await unfinished()) === 0);
  assert.equal((await textOf(stream)).length, 2999);
});

// Deaths.

test("a worker killed in the middle of a stream ends it with a typed error, and another one answers", async () => {
  const llm = await echo();
  const stream = llm.stream("abc", ENDLESS);
  await stream.next();
  const worker = (await pool.status()).workers.find(({ model }) => model === llm.name);
  process.kill(worker!.pid!, "SIGKILL");
  await assert.rejects(textOf(stream), (error) => {
    assert.ok(error instanceof WorkerLost);
    assert.ok(error.retryable);
    return error.exit === "was killed by SIGKILL";
  });
  assert.equal((await llm.generate("again")).outputs[0]?.text, "again");
});

test("a stream that may be resumed goes on where its worker was killed", async () => {
  const llm = await echo();
  const stream = llm.stream("abc", { max_tokens: 600, ignore_eos: true }, { retry: "resume" });
  let text = (await stream.next()).value!.text;
  const worker = (await pool.status()).workers.find(({ model }) => model === llm.name);
  process.kill(worker!.pid!, "SIGKILL");
  text += await textOf(stream);
  assert.equal(text, "abc".repeat(200));
});

test("a restarted supervisor fails open calls with PoolLost, and the next call goes on by itself", async () => {
  const llm = await echo();
  const epoch = await pool.epoch();
  const open = [llm.generate("abc", ENDLESS), textOf(llm.stream("abc", ENDLESS))];
  await eventually(async () => (await unfinished()) === 2);
  await service.kill();
  for (const call of open) await assert.rejects(call, PoolLost);
  const [result] = await Promise.all([llm.generate("again"), service.start()]);
  assert.equal(result.outputs[0]?.text, "again", "the model was loaded again by the handle");
  assert.notEqual(await pool.epoch(), epoch);
});

test("a client that is killed leaves nothing in the engine", async () => {
  const llm = await echo();
  const program = fileURLToPath(new URL("endless.js", import.meta.url));
  const client = spawn(process.execPath, [program, service.endpoint, llm.name], { stdio: ["ignore", "pipe", "inherit"] });
  await once(client.stdout, "data");
  assert.equal(await unfinished(), 1);
  client.kill("SIGKILL");
  await eventually(async () => (await unfinished()) === 0);
});

// Connections.

test("nobody at the endpoint is a typed error at once", async () => {
  await assert.rejects(Pool.connect("ipc:///tmp/nobody-is-here.sock", { patience: 0 }), ConnectFailed);
  await assert.rejects(Pool.connect("tcp://somewhere", { patience: 0 }), InvalidRequest);
});

test("a pool on TCP is not asked without proper keys", async () => {
  const nobody = "tcp://127.0.0.1:9";
  const serverKey = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID";
  const key = `${service.folder}/own.key`;
  const complains = (options: object, about: string) =>
    assert.rejects(Pool.connect(nobody, { patience: 0, ...options }), (error) => {
      assert.ok(error instanceof InvalidRequest);
      assert.ok(!error.message.includes("secret"));
      return error.parameter === about;
    });
  await complains({}, "serverKey");
  await complains({ serverKey: "short", key }, "serverKey");
  await complains({ serverKey }, "key");
  await complains({ serverKey, key }, "key");
  writeFileSync(key, 'public_key = "secret"\n', { mode: 0o600 });
  await complains({ serverKey, key }, "key");
  writeFileSync(key, `public_key = "${serverKey}"\nsecret_key = "${serverKey}"\n`);
  chmodSync(key, 0o644);
  await complains({ serverKey, key }, "key");
  chmodSync(key, 0o600);
  await assert.rejects(Pool.connect(nobody, { patience: 0, serverKey, key }), ConnectFailed);
});

test("a client that was closed says so", async () => {
  const other = await Pool.connect(service.endpoint);
  const llm = await other.llm("echo", { name: "echo other" });
  const call = llm.generate("abc", ENDLESS);
  await eventually(async () => (await unfinished()) === 1);
  await Promise.all([assert.rejects(call, PoolClosed), other.close()]);
  await assert.rejects(other.status(), PoolClosed);
});

// Universal calls: refs held, methods called, iterators streamed, workers lost.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { EngineError, InvalidRequest, type LLM, NotAllowed, Pool, type RemoteRef, SessionLost } from "../src/index.js";
import { Service, eventually } from "./service.js";

const TOML = '[universal]\nmodules = ["asyncio", "decimal", "itertools"]\n[models.echo]\nmodel = "echo"\n';

const service = new Service();
let pool: Pool;
let llm: LLM;

before(async () => {
  await service.start(TOML);
  pool = await Pool.connect(service.endpoint);
  llm = await pool.llm(undefined, { name: "echo" });
});

after(async () => {
  await pool.close();
  await service.stop();
});

async function decimal(session: ReturnType<LLM["session"]>, text: string): Promise<RemoteRef> {
  return (await session.call("decimal", "Decimal", [text])) as RemoteRef;
}

test("a ref is held, read, called, passed on and released", async () => {
  await using session = llm.session();
  const two = await decimal(session, "2.25");
  assert.equal(two.type, "decimal.Decimal");
  const root = (await two.method("sqrt")) as RemoteRef;
  assert.equal(await (await decimal(session, "1.5")).method("compare_total", [root]).then((ref) => (ref as RemoteRef).method("is_zero")), true);
  assert.equal(await two.method("is_signed"), false);
  assert.equal(await session.call("asyncio", "sleep", [0], { result: "slept" }), "slept");
  await two.release();
  await two.release();
  await assert.rejects(two.method("sqrt"), SessionLost);
});

test("an endless iterator is streamed as far as it is read", async () => {
  await using session = llm.session();
  const found: unknown[] = [];
  for await (const number of session.stream("itertools", "count", [5])) {
    found.push(number);
    if (found.length === 700) break;
  }
  assert.deepEqual(found, Array.from({ length: 700 }, (_, index) => index + 5));
  const held = (await session.call("itertools", "repeat", ["x", 3])) as RemoteRef;
  const items: unknown[] = [];
  for await (const item of held) items.push(item);
  assert.deepEqual(items, ["x", "x", "x"]);
  await eventually(async () => (await pool.status()).workers.every(({ in_flight }) => in_flight === 0));
});

test("names that are not on the list are refused", async () => {
  await using session = llm.session();
  const two = await decimal(session, "2");
  await assert.rejects(session.call("os", "system", ["true"]), NotAllowed);
  await assert.rejects(two.attr("__class__"), NotAllowed);
  await assert.rejects(session.get("decimal", "Decimal"), NotAllowed);
  await assert.rejects(decimal(session, "none"), (error) => {
    assert.ok(error instanceof EngineError);
    return error.details["class"] === "decimal.InvalidOperation";
  });
  assert.throws(() => llm.session({ ttl: 5 }), InvalidRequest);
});

test("the end of a session is the end of its refs", async () => {
  const session = llm.session();
  const two = await decimal(session, "2");
  await session.end();
  await assert.rejects(two.method("sqrt"), SessionLost);
  await using other = llm.session({ name: "shared", ttl: 5000 });
  assert.ok(await decimal(other, "1"));
});

test("a lost worker is a lost session until it is ended", async () => {
  await using session = llm.session();
  const two = await decimal(session, "2");
  const [worker] = (await pool.status()).workers;
  process.kill(worker!.pid!, "SIGKILL");
  await eventually(async () => {
    try {
      await two.method("sqrt");
    } catch (error) {
      assert.ok(error instanceof SessionLost);
      return /SIGKILL/.test(error.exit);
    }
    return false;
  });
  await session.end();
  assert.ok(await decimal(session, "2"));
});

test("objects of vLLM itself", async () => {
  await using tiny = await pool.llm("tiny", { name: "vllm" });
  await using session = tiny.session();
  const params = (await session.call("vllm", "SamplingParams", [], { max_tokens: 8, stop: ["x"] })) as RemoteRef;
  assert.equal(await params.attr("max_tokens"), 8);
  await params.setAttr("max_tokens", 9);
  assert.equal(await ((await params.method("clone")) as RemoteRef).attr("max_tokens"), 9);
  const made = await session.make("vllm.sampling_params", "SamplingParams", { n: 2, stop_token_ids: [1] });
  assert.equal(await made.attr("n"), 2);
  const tokenizer = (await session.get("engine", "tokenizer")) as RemoteRef;
  assert.deepEqual(await tokenizer.method("encode", ["1 2 3"]), await tiny.tokenize("1 2 3"));
  await assert.rejects(session.call("vllm", "LLM", ["tiny"]), NotAllowed);
});

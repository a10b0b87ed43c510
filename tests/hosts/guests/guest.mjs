// Calls what runs, then tries to load a model: prints the answer, and the codes of what is refused.
// With an argument it streams, and prints how that ends.
import { Pool, PermissionDenied } from "vllmport";

try {
  const pool = await Pool.connect();
  if (process.argv[2] === "stream") {
    const echo = await pool.llm(undefined, { name: "echo" });
    let count = 0;
    for await (const _ of echo.stream("abc", { max_tokens: 1_000_000, ignore_eos: true })) {
      if (count++ === 0) console.log("streams");
    }
  }
  const llm = await pool.llm(undefined, { name: "tiny" });
  const answer = await llm.generate("The capital of France is", { temperature: 0, max_tokens: 8 });
  console.log(answer.outputs[0].text);
  await pool.llm("echo", { name: "mine" }).then(
    () => console.log("loaded"),
    (error) => console.log(error.code, error.details.role, error instanceof PermissionDenied),
  );
  await pool.close();
} catch (error) {
  console.log(error.code, error.details.endpoint, error.message, error instanceof PermissionDenied);
}

# A runtime folder of its own, short enough for sockets. VLLMPORT says how to start pools.
folder = "/tmp/vp-elixir-#{System.pid()}"
File.mkdir_p!(folder)
System.put_env("XDG_RUNTIME_DIR", folder)
System.put_env("XDG_STATE_HOME", folder)
tiny = Path.expand("../../../pool/vllmport/pool/models/tiny", __DIR__)

# The names of the configuration guide stand for the bundled model.
names = [
  "meta-llama/Llama-2-7b-hf",
  "meta-llama/Llama-2-70b-hf",
  "TheBloke/Llama-2-7B-AWQ",
  "facebook/opt-125m",
  "/path/to/local/model"
]

config = Path.join(folder, "pool.toml")
aliases = Enum.map(names, &"\"#{&1}\" = \"#{tiny}\"\n")
modules = "[universal]\nmodules = [\"asyncio\", \"decimal\", \"fractions\", \"itertools\"]\n"

# No process at hand: each model here is loaded once, and what stands by would take its time.
File.write!(config, ["[policy]\nstandby = false\n", modules, "[aliases]\n" | aliases])

Application.put_env(:vllm, :pool, config)

ExUnit.after_suite(fn _ ->
  VLLM.Pool.close()
  File.rm_rf!(folder)
end)

ExUnit.start(capture_log: true, timeout: 180_000)

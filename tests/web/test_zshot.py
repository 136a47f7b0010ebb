import json
from tests.web.test_live import Probe
from tests.web.test_report import give, FAIL, CLOSE_DIALOGS, run_inspect
from lora_workbench.nodes.report_form import *
from lora_workbench.lora_core.errors import LoraError
def test_shots(shown, request):
    tag = "n2" if "nodes" in request.node.name else "cl"
    page = shown.page; page.set_viewport_size({"width":1300,"height":900})
    pr = Probe(shown, 120, "loss 0.0421")
    page.evaluate("() => { const n=app.graph.nodes[0]; n.setSize([520, 480]) }")
    pr.start(); pr.until_step(60)
    page.screenshot(path=f"/tmp/panels_live_{tag}.png")
    pr.button("Stop and keep").click(); pr.ended(); pr.settle()
    page.screenshot(path=f"/tmp/panels_live_end_{tag}.png")
    keys = tuple(f"lora_unet_down_blocks_{n}_attentions_0_proj_in.alpha" for n in range(40))
    un = Unused("unmatched", "the model has no module of this name", keys)
    secs = (Section("inks/style.safetensors","model 1 · clip 1 · 264 / 264 tensors used","ok",()),
      Section("very/long/folder/names/for/a/lora/file_with_a_long_name_v12.safetensors","model 0.8 · clip 0.5 · 224 / 264 tensors used","partial",(("weighting","IN=0.5, OUT=1.2"),),(un,),("alpha is 0 in the file: read as alpha = rank",)),
      Section("xl.safetensors","model 1 · clip 1 · 0 / 2166 tensors used","wrong",(),(un,)))
    rep = Report("3 LoRAs applied · merge, differential re-patch", (("undo","file: 264 weights, 0 bytes kept"),("device","cuda:0")), secs, ("the model is quantised",))
    box = give(shown, "LoraWorkbenchApply", rep)
    page.evaluate("() => { const n=app.graph.nodes[0]; n.setSize([520, 720]) }")
    pr.settle(); box.locator("summary").first.click(); pr.settle()
    page.screenshot(path=f"/tmp/panels_report_{tag}.png")
    page.evaluate(FAIL, str(LoraError("style.safetensors does not fit this model.", {"Base":"SDXL","File":"/a/b.safetensors"}, "choose a LoRA for SDXL, or another checkpoint."))); page.wait_for_timeout(500)
    page.screenshot(path=f"/tmp/panels_error_{tag}.png")
    page.evaluate(CLOSE_DIALOGS)
    run_inspect(shown); page.evaluate("() => { app.canvas.ds.scale=1; app.canvas.ds.offset=[0,0]; const n=app.graph.nodes[1]; n.pos=[420,100]; n.setSize([480,600]); app.graph.setDirtyCanvas(true,true)}"); pr.settle()
    page.screenshot(path=f"/tmp/panels_inspect_{tag}.png")

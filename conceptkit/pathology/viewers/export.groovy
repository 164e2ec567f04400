// Writes all objects of the open image for conceptkit adapt qupath, into the folder corrected of the export.
// Run > Run for project does it for every image of a project. QuPath 0.5 or later.

def folder = 'FOLDER'       // the export that was imported: change it when you move the folder

def contents = GsonTools.getInstance().fromJson(new File(folder, 'conceptkit.json').getText('UTF-8'), Map)
def place = new File(getCurrentServer().getURIs().iterator().next().getPath())
def named = contents.images.findAll { it.image == place.getName() }
if (named.size() > 1) {
    named = named.findAll { it.path.replace('\\', '/').endsWith(place.getParentFile().getName() + '/' + it.image) }
}
if (named.size() != 1) {
    println "conceptkit: ${place.getName()} is not an image of the export"
    return
}
def out = new File(folder, 'corrected')
out.mkdirs()
def file = new File(out, named[0].file)
if (file.exists()) {
    println "conceptkit: ${file} exists and is kept; move it to write another one"
    return
}
exportAllObjectsToGeoJson(file.getAbsolutePath(), 'FEATURE_COLLECTION')
println "conceptkit: ${file} written"
